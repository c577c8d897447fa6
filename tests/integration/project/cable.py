"""Channels that show each behaviour of PROTOCOL.md."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

from django.contrib.auth import get_user_model

from reliable_cable import Channel, action, broadcast, state
from tests.integration.project import receivers
from tests.integration.project.gates import gates

receivers.connect()


class EchoChannel(Channel):
    """Answers with what it was told, and with what it knows of its subscription."""

    @action
    def echo(self, data: dict[str, Any]) -> None:
        """Send the data back."""
        self.transmit({"echo": data, "params": self.params})

    @action
    async def aecho(self, data: dict[str, Any]) -> None:
        """Send the data back, from the event loop."""
        self.transmit({"echo": data, "params": self.params})

    @action
    def whoami(self) -> None:
        """Tell the user's name, by a query."""
        known = get_user_model().objects.filter(pk=self.user.pk).first()
        self.transmit({"user": known.get_username() if known else None})

    @action
    async def awhoami(self) -> None:
        """Tell the user's name, by an async query."""
        known = await get_user_model().objects.filter(pk=self.user.pk).afirst()
        self.transmit({"user": known.get_username() if known else None})

    def helper(self) -> None:
        """Not an action: clients cannot call it."""
        self.transmit({"helper": "was called"})


class StreamChannel(Channel):
    """Streams from everything that the params name, in this order."""

    def subscribed(self) -> None:
        """Start the streams."""
        for stream in self.params["streams"]:
            self.stream_from(stream)

    @action
    def start(self, data: dict[str, Any]) -> None:
        """Stream from one more."""
        self.stream_from(data["stream"])
        self.transmit({"started": data["stream"]})

    @action
    def stop(self, data: dict[str, Any]) -> None:
        """Leave a stream."""
        self.stop_stream_from(data["stream"])
        self.transmit({"stopped": data["stream"]})

    @action
    def stop_all(self) -> None:
        """Leave all streams."""
        self.stop_all_streams()
        self.transmit({"stopped": "all"})

    @action
    def say(self, data: dict[str, Any]) -> None:
        """Broadcast to the first stream."""
        broadcast(self.params["streams"][0], {"text": data["text"]})


class AsyncStreamChannel(Channel):
    """As `StreamChannel`, with handlers on the event loop."""

    async def subscribed(self) -> None:
        """Start the streams."""
        for stream in self.params["streams"]:
            self.stream_from(stream)


class QueryChannel(Channel):
    """Streams to users whom a database query finds."""

    def subscribed(self) -> None:
        """Query, and stream."""
        if get_user_model().objects.filter(pk=self.user.pk).exists():
            return self.stream_from(self.params["stream"])
        self.reject()

    def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the wire's name
        """Let users join under their own names, which another query finds."""
        return get_user_model().objects.filter(pk=self.user.pk, username=id).exists()


class AsyncQueryChannel(Channel):
    """Like `QueryChannel`, with an async query."""

    async def subscribed(self) -> None:
        """Query, and stream."""
        if await get_user_model().objects.filter(pk=self.user.pk).aexists():
            return self.stream_from(self.params["stream"])
        self.reject()


class GreetingChannel(Channel):
    """Transmits while it is being subscribed to."""

    def subscribed(self) -> None:
        """Transmit twice, and stream."""
        self.transmit({"greeting": 1})
        self.stream_from(self.params["stream"])
        self.transmit({"greeting": 2})


class RejectingChannel(Channel):
    """Nobody gets in."""

    def subscribed(self) -> None:
        """Transmit why, and reject; the stream is never started."""
        self.stream_from(self.params["stream"])
        self.transmit({"reason": "full"})
        self.reject()


class GuardedChannel(Channel):
    """Checks before handlers."""

    def before_subscribe(self) -> bool:
        """Keep out those who say that they are strangers."""
        return "stranger" not in self.params

    async def before_action(self, action: str, data: Mapping[str, Any]) -> bool:
        """Allow only what is allowed."""
        return bool(data.get("allowed"))

    def subscribed(self) -> None:
        """Tell that the check let it through."""
        self.transmit({"subscribed": True})

    @action
    def act(self, data: dict[str, Any]) -> None:
        """Tell that the check let it through."""
        self.transmit({"acted": data["n"]})


class RaisingChannel(Channel):
    """Fails in every way."""

    count = state(default=0)

    def subscribed(self) -> None:
        """Raise where the params ask for it, after recording what must not be applied."""
        self.stream_from(self.params["stream"])
        if self.params.get("raises"):
            self.transmit({"recorded": "and dropped"})
            raise RuntimeError("subscribed raised, as the test asked")

    @action
    def fail(self) -> None:
        """Record, change state, and raise."""
        self.count = 100
        self.stop_all_streams()
        self.transmit({"recorded": "and dropped"})
        raise RuntimeError("fail raised, as the test asked")

    @action
    async def afail(self) -> None:
        """Raise on the event loop."""
        self.transmit({"recorded": "and dropped"})
        raise RuntimeError("afail raised, as the test asked")

    @action
    def tell(self) -> None:
        """Tell the state."""
        self.transmit({"count": self.count})

    def handle_error(self, error: Exception, handler: str) -> None:
        """Tell the client which handler failed."""
        self.transmit({"failed": handler})


class GatedChannel(Channel):
    """Waits at the gate of its params before anything happens."""

    def subscribed(self) -> None:
        """Wait, in a thread of the pool."""
        gates[self.params["gate"]].enter()
        for stream in self.params.get("streams", ()):
            self.stream_from(stream)


class AsyncGatedChannel(Channel):
    """As `GatedChannel`, on the event loop."""

    async def subscribed(self) -> None:
        """Wait, without holding up the loop."""
        await asyncio.to_thread(gates[self.params["gate"]].enter)
        for stream in self.params.get("streams", ()):
            self.stream_from(stream)


class AuditedChannel(Channel):
    """Tells on the stream `audit` of its params what happened to the subscription."""

    count = state(default=0)

    def _tell(self, event: str) -> None:
        broadcast(self.params["audit"], {"event": event, "id": self.params.get("id"), "count": self.count})

    def subscribed(self) -> None:
        """Tell it, and stream."""
        self._tell("subscribed")
        for stream in self.params.get("streams", ()):
            self.stream_from(stream)

    def unsubscribed(self) -> None:
        """Tell it."""
        self._tell("unsubscribed")

    def resubscribed(self) -> None:
        """Tell it, transmit the state, or reject where the params ask for it."""
        self._tell("resubscribed")
        if self.params.get("fickle"):
            self.reject()
        elif self.params.get("raises"):
            raise RuntimeError("resubscribed raised, as the test asked")
        else:
            self.transmit({"count": self.count})

    @action
    def increment(self) -> None:
        """Count up and tell the result."""
        self.count += 1
        self.transmit({"count": self.count})


class RoomChannel(Channel):
    """Presence that clients may join by themselves, and whispers."""

    def subscribed(self) -> None:
        """Stream from the room."""
        self.stream_from(self.params["room"], whisper=True, presence=True)

    def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the wire's name
        """Let everybody in but the impostor."""
        return id != "impostor"

    @action
    def rename(self, data: dict[str, Any]) -> None:
        """Join by the handler, perhaps again, with a number as the id."""
        self.presence.join(data["id"], data.get("info"))

    @action
    def hide(self) -> None:
        """Leave presence, and stay subscribed."""
        self.presence.leave()


class LobbyChannel(Channel):
    """Presence by the handler only, on the second of two streams."""

    def subscribed(self) -> None:
        """Stream, and join as the params say."""
        self.stream_from(self.params["news"])
        self.stream_from(self.params["lobby"], presence=True)
        self.presence.join(self.params["id"], {"via": "handler"})


class FillChannel(Channel):
    """Transmits much at once."""

    @action
    def fill(self, data: dict[str, Any]) -> None:
        """Transmit `count` messages of about `size` bytes."""
        text = base64.b64encode(bytes(data["size"] * 3 // 4)).decode()
        for number in range(data["count"]):
            self.transmit({"n": number, "fill": text})
