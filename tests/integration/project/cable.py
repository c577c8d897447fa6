"""Channels for tests of the protocol."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.utils import translation

from reliable_cable import Channel, action, broadcast, state
from tests.integration.project import receivers
from tests.integration.project.gates import gates

receivers.connect()


class EchoChannel(Channel):
    """Transmits the data of its actions and the user of its connection."""

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
        """Transmit the name of the user, which a query reads."""
        known = get_user_model().objects.filter(pk=self.user.pk).first()
        self.transmit({"user": known.get_username() if known else None})

    @action
    async def awhoami(self) -> None:
        """Transmit the name of the user, which an async query reads."""
        known = await get_user_model().objects.filter(pk=self.user.pk).afirst()
        self.transmit({"user": known.get_username() if known else None})

    def helper(self) -> None:
        """Not an action, so clients cannot call this method."""
        self.transmit({"helper": "was called"})


class StreamChannel(Channel):
    """Starts the streams of the param `streams`, in this order, after the page position in `after`, if any."""

    def subscribed(self) -> None:
        """Start the streams."""
        for stream in self.params["streams"]:
            self.stream_from(stream, after=self.params.get("after"))

    @action
    def start(self, data: dict[str, Any]) -> None:
        """Start another stream."""
        self.stream_from(data["stream"])
        self.transmit({"started": data["stream"]})

    @action
    def stop(self, data: dict[str, Any]) -> None:
        """Stop one stream."""
        self.stop_stream_from(data["stream"])
        self.transmit({"stopped": data["stream"]})

    @action
    def stop_all(self) -> None:
        """Stop all streams."""
        self.stop_all_streams()
        self.transmit({"stopped": "all"})

    @action
    def say(self, data: dict[str, Any]) -> None:
        """Broadcast to the first stream."""
        broadcast(self.params["streams"][0], {"text": data["text"]})


class AsyncStreamChannel(Channel):
    """Starts the streams of the param `streams` in an async handler."""

    async def subscribed(self) -> None:
        """Start the streams."""
        for stream in self.params["streams"]:
            self.stream_from(stream)


class QueryChannel(Channel):
    """Accepts subscriptions of users whom a database query finds."""

    def subscribed(self) -> None:
        """Start the stream if a query finds the user. If not, reject the subscription."""
        if get_user_model().objects.filter(pk=self.user.pk).exists():
            return self.stream_from(self.params["stream"])
        self.reject()

    def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the wire's name
        """Allow users to join with their own name, which a query reads."""
        return get_user_model().objects.filter(pk=self.user.pk, username=id).exists()


class AsyncQueryChannel(Channel):
    """Accepts the same subscriptions as `QueryChannel`, with an async query."""

    async def subscribed(self) -> None:
        """Start the stream if a query finds the user. If not, reject the subscription."""
        if await get_user_model().objects.filter(pk=self.user.pk).aexists():
            return self.stream_from(self.params["stream"])
        self.reject()


class GreetingChannel(Channel):
    """Transmits messages in `subscribed`."""

    def subscribed(self) -> None:
        """Transmit two messages, and start the stream."""
        self.transmit({"greeting": 1})
        self.stream_from(self.params["stream"])
        self.transmit({"greeting": 2})


class RejectingChannel(Channel):
    """Rejects all subscriptions."""

    def subscribed(self) -> None:
        """Request a stream, transmit the reason, and reject. Because of `reject`, the stream must not be started."""
        self.stream_from(self.params["stream"])
        self.transmit({"reason": "full"})
        self.reject()


class GuardedChannel(Channel):
    """Has checks that run before the handlers."""

    def before_subscribe(self) -> bool:
        """Reject subscriptions with a param `stranger`."""
        return "stranger" not in self.params

    async def before_action(self, action: str, data: Mapping[str, Any]) -> bool:
        """Reject actions unless `allowed` is true in their data."""
        return bool(data.get("allowed"))

    def subscribed(self) -> None:
        """Transmit that `before_subscribe` allowed the subscription."""
        self.transmit({"subscribed": True})

    @action
    def act(self, data: dict[str, Any]) -> None:
        """Transmit that `before_action` allowed the action."""
        self.transmit({"acted": data["n"]})


class RaisingChannel(Channel):
    """Raises errors in its handlers."""

    count = state(default=0)

    def subscribed(self) -> None:
        """Request a stream. If the params say so, request a transmission and raise an error, which must drop both."""
        self.stream_from(self.params["stream"])
        if self.params.get("raises"):
            self.transmit({"recorded": "and dropped"})
            raise RuntimeError("subscribed raised, as the test asked")

    @action
    def fail(self) -> None:
        """Change the state, request the end of all streams and a transmission, and raise an error."""
        self.count = 100
        self.stop_all_streams()
        self.transmit({"recorded": "and dropped"})
        raise RuntimeError("fail raised, as the test asked")

    @action
    async def afail(self) -> None:
        """Request a transmission, and raise an error in an async handler."""
        self.transmit({"recorded": "and dropped"})
        raise RuntimeError("afail raised, as the test asked")

    @action
    def tell(self) -> None:
        """Transmit the state."""
        self.transmit({"count": self.count})

    def handle_error(self, error: Exception, handler: str) -> None:
        """Transmit the name of the handler that failed."""
        self.transmit({"failed": handler})


class GatedChannel(Channel):
    """Waits in `subscribed` at the gate that its params name, and then starts its streams."""

    def subscribed(self) -> None:
        """Wait in a thread of the handler pool."""
        gates[self.params["gate"]].enter()
        for stream in self.params.get("streams", ()):
            self.stream_from(stream)


class AsyncGatedChannel(Channel):
    """Like `GatedChannel`, with async handlers."""

    async def subscribed(self) -> None:
        """Wait without blocking the event loop."""
        await asyncio.to_thread(gates[self.params["gate"]].enter)
        for stream in self.params.get("streams", ()):
            self.stream_from(stream)


class AuditedChannel(Channel):
    """Broadcasts each event of the subscription to the stream that the param `audit` names."""

    count = state(default=0)

    def _tell(self, event: str) -> None:
        broadcast(self.params["audit"], {"event": event, "id": self.params.get("id"), "count": self.count})

    def subscribed(self) -> None:
        """Broadcast the event `subscribed`, and start the streams."""
        self._tell("subscribed")
        for stream in self.params.get("streams", ()):
            self.stream_from(stream)

    def unsubscribed(self) -> None:
        """Broadcast the event `unsubscribed`."""
        self._tell("unsubscribed")

    def resubscribed(self) -> None:
        """Broadcast the event `resubscribed`. Then transmit the state, unless the params ask to reject or to fail."""
        self._tell("resubscribed")
        if self.params.get("fickle"):
            self.reject()
        elif self.params.get("raises"):
            raise RuntimeError("resubscribed raised, as the test asked")
        else:
            self.transmit({"count": self.count})

    @action
    def increment(self) -> None:
        """Increment the counter in the state, and transmit it."""
        self.count += 1
        self.transmit({"count": self.count})


class RightsChannel(Channel):
    """Starts those streams of its params for which the database has a row (see `calls.allow`)."""

    count = state(default=0)

    def subscribed(self) -> None:
        """Start the allowed streams and join presence, or reject if no stream is allowed."""
        allowed = set(Group.objects.filter(name__in=self.params["streams"]).values_list("name", flat=True))
        if not allowed:
            return self.reject()
        for stream in self.params["streams"]:
            if stream in allowed:
                self.stream_from(stream)
        self.presence.join(self.params.get("id", "member"))

    @action
    def increment(self) -> None:
        """Increment the counter in the state, and transmit it."""
        self.count += 1
        self.transmit({"count": self.count})

    @action
    def start(self, data: dict[str, Any]) -> None:
        """Start another stream."""
        self.stream_from(data["stream"])
        self.transmit({"started": data["stream"]})


class RoomChannel(Channel):
    """Has whispers, and presence that clients may join by themselves."""

    def subscribed(self) -> None:
        """Start the stream of the room, with whispers and presence."""
        self.stream_from(self.params["room"], whisper=True, presence=True)

    def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the wire's name
        """Allow all ids except `impostor`."""
        return id != "impostor"

    @action
    def rename(self, data: dict[str, Any]) -> None:
        """Join presence with the id and info in the data. Tests use a number as the id."""
        self.presence.join(data["id"], data.get("info"))

    @action
    def hide(self) -> None:
        """Leave presence, but stay subscribed."""
        self.presence.leave()


class SilentChannel(Channel):
    """Has no stream, so it cannot have members."""

    def subscribed(self) -> None:
        """Join presence if the params say so."""
        if "joins" in self.params:
            self.presence.join("handler")

    def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the wire's name
        """Allow all ids."""
        return True

    @action
    def appear(self) -> None:
        """Join presence."""
        self.presence.join("handler")


class LobbyChannel(Channel):
    """Has presence on the second of its two streams. Clients cannot join by themselves."""

    def subscribed(self) -> None:
        """Start the streams, and join as the member that the params name."""
        self.stream_from(self.params["news"])
        self.stream_from(self.params["lobby"], presence=True)
        self.presence.join(self.params["id"], {"via": "handler"})


class AnswerChannel(Channel):
    """Has actions that answer calls with a result, with a refusal or with an error."""

    def subscribed(self) -> None:
        """Start the stream that the params name, if any."""
        if "stream" in self.params:
            self.stream_from(self.params["stream"], whisper=True)

    @action
    def double(self, data: dict[str, Any]) -> int:
        """Return twice the number."""
        return int(data["number"]) * 2

    @action
    async def keys(self, data: dict[str, Any]) -> list[str]:
        """Return the keys of the data."""
        return sorted(data)

    @action
    def refuse(self) -> None:
        """Raise the error that refuses the call."""
        raise PermissionDenied("as the test asked")

    @action
    def fail(self) -> None:
        """Raise an error."""
        raise RuntimeError("fail raised, as the test asked")

    @action
    def wait(self, data: dict[str, Any]) -> str:
        """Wait at a gate, and then return a result."""
        gates[data["gate"]].enter()
        return "late"


class FillChannel(Channel):
    """Transmits many messages at once."""

    @action
    def fill(self, data: dict[str, Any]) -> None:
        """Transmit `count` messages of about `size` bytes."""
        text = base64.b64encode(bytes(data["size"] * 3 // 4)).decode()
        for number in range(data["count"]):
            self.transmit({"n": number, "fill": text})


class ContextChannel(Channel):
    """Transmits the language and the tenant with which its handlers run."""

    #: The tenant that `before_action` last saw on the database connection.
    checked: str | None = None

    def before_action(self, action: str, data: Mapping[str, Any]) -> None:
        """Read the tenant of this thread's database connection."""
        self.checked = getattr(connection, "tenant", None)

    @action
    def tell(self) -> None:
        """Transmit the language, the tenant that `before_action` saw, and the tenant of this handler."""
        tenants = [self.checked, getattr(connection, "tenant", None)]
        self.transmit({"language": translation.get_language(), "tenants": tenants})

    @action
    async def atell(self) -> None:
        """Transmit the language."""
        self.transmit({"language": translation.get_language()})

    @action
    def switch(self, data: dict[str, Any]) -> None:
        """Wait at a gate, and switch to another language without switching back."""
        gates[data["gate"]].enter()
        translation.activate(data["language"])

    @action
    async def aswitch(self, data: dict[str, Any]) -> None:
        """Like `switch`, in the event loop."""
        await asyncio.to_thread(gates[data["gate"]].enter)
        translation.activate(data["language"])
