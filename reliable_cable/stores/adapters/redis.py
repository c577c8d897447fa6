"""Adapters that send messages to anycable-go through Redis."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError
from reliable_cable.stores.redis.client import BaseClient, Call, RedisRefused, RedisUnavailable
from reliable_cable.stores.redis.clients import client_for

from .base import Adapter, join, uncertain


class RedisAdapter(Adapter):
    """Publishes to a pub/sub channel (`--broadcast_adapter=redis`). All servers of anycable-go receive each message."""

    def __init__(self, settings: CableSettings) -> None:
        super().__init__(settings)
        self.client: BaseClient = client_for(settings)

    @property
    def place(self) -> str:
        """The address of Redis, and the channel."""
        return f"{self.client.place}, pub/sub channel {self.settings.broadcast_channel!r}"

    def publish(self, messages: Sequence[str]) -> None:
        """Publish all messages of the call as one message of Redis."""
        with _broadcast_errors():
            self.client.run(self._call(messages))

    async def apublish(self, messages: Sequence[str]) -> None:
        """Async version of `publish`."""
        with _broadcast_errors():
            await self.client.arun(self._call(messages))

    def close(self) -> None:
        """Close the connections of sync code."""
        self.client.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self.client.aclose()

    def _call(self, messages: Sequence[str]) -> Call:
        (text,) = join(messages)
        return self._command(self.settings.broadcast_channel, text)

    def _command(self, channel: str, text: str) -> Call:
        return Call("PUBLISH", (channel,), (text,))


class RedisStreamAdapter(RedisAdapter):
    """Appends to a Redis stream (`--broadcast_adapter=redisx`). Each entry is taken by one server of anycable-go.

    Redis keeps the entries while no server of anycable-go is running. A server deletes each entry that it has taken.
    """

    @property
    def place(self) -> str:
        """The address of Redis, and the key of the stream."""
        return f"{self.client.place}, stream {self.settings.broadcast_channel!r}"

    def _command(self, channel: str, text: str) -> Call:
        return Call("XADD", (channel,), ("*", "payload", text))


@contextmanager
def _broadcast_errors() -> Iterator[None]:
    """Convert errors of Redis to those of broadcasts."""
    try:
        yield
    except (RedisUnavailable, RedisRefused) as error:
        if error.sent:
            raise uncertain(error) from error
        raise BroadcastError(f"Nothing was broadcast: {error}") from error
