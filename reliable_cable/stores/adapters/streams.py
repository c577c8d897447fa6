"""The stream store that sends broadcasts to anycable-go. It stores nothing itself."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NoReturn, TypeVar

from django.utils.module_loading import import_string

from reliable_cable.concurrency.threads import run_publish
from reliable_cable.conf import CONTROL_STREAM, CableSettings
from reliable_cable.exceptions import NotSupported
from reliable_cable.identity import identifiers_text
from reliable_cable.protocol.control import Revocation, decode
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.stores.streams.base import NOWHERE, Message, StreamEvent, StreamListener, StreamStore

from .base import Adapter, encode_broadcast, encode_disconnect

T = TypeVar("T")

#: The classes of the adapters, by the value of `BROADCAST_ADAPTER`.
ADAPTER_CLASSES: Final[Mapping[str, str]] = {
    "redisx": f"{__package__}.redis.RedisStreamAdapter",
    "redis": f"{__package__}.redis.RedisAdapter",
    "nats": f"{__package__}.nats.NatsAdapter",
    "http": f"{__package__}.http.HttpAdapter",
}


class AdapterStreamStore(StreamStore):
    """Sends broadcasts and disconnects to anycable-go through the adapter that `BROADCAST_ADAPTER` names.

    Streams, their positions and their history are in anycable-go, and cannot be read from there.

    Args:
        settings: the settings of this package.
        clock: this host's clock, in seconds since 1970.
    """

    is_remote = True

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings, clock=clock)
        self.adapter: Adapter = import_string(ADAPTER_CLASSES[settings.broadcast_adapter or ""])(settings)

    @property
    def place(self) -> str:
        """Where the adapter sends messages."""
        return self.adapter.place

    # -- sending ------------------------------------------------------------------------------------------------------

    def append(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Send messages, in the given order. anycable-go numbers them, so their positions are not known here.

        With NATS, messages whose total size exceeds the limit of the server are sent in several parts.
        """
        for messages in _encode(items):
            self.adapter.publish(messages)
        return [NOWHERE] * len(items)

    async def aappend(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Async version of `append`."""
        for messages in _encode(items):
            await self.adapter.apublish(messages)
        return [NOWHERE] * len(items)

    def publish_transients(self, items: Sequence[tuple[str, Message]]) -> None:
        """Send messages that anycable-go leaves out of the histories of streams."""
        for messages in _encode(items, transient=True):
            self.adapter.publish(messages)

    async def apublish_transients(self, items: Sequence[tuple[str, Message]]) -> None:
        """Async version of `publish_transients`."""
        for messages in _encode(items, transient=True):
            await self.adapter.apublish(messages)

    def publish_transient(self, stream: str, message: Message) -> None:
        """Send a message that anycable-go leaves out of the history of the stream."""
        self.publish_transients([(stream, message)])

    async def apublish_transient(self, stream: str, message: Message) -> None:
        """Async version of `publish_transient`."""
        await self.apublish_transients([(stream, message)])

    # -- calls that anycable-go cannot answer -------------------------------------------------------------------------

    def position(self, stream: str) -> StreamPosition:
        """Raise `NotSupported`, except for the control stream, whose position is requested by health checks.

        Nothing is stored in the control stream, so its position is `NOWHERE`.
        """
        if stream != CONTROL_STREAM:
            self._refuse()
        return NOWHERE

    async def aposition(self, stream: str) -> StreamPosition:
        """Async version of `position`."""
        return self.position(stream)

    def read(
        self,
        stream: str,
        *,
        after: int,
        limit: int,
        max_size: int | None = None,
        known: StreamPosition | None = None,
        following: bool = False,
    ) -> StreamPage:
        """Raise `NotSupported`."""
        self._refuse()

    def offset_since(self, stream: str, since: float) -> int | None:
        """Raise `NotSupported`."""
        self._refuse()

    def forget(self, stream: str, *, epoch: str = "") -> None:
        """Raise `NotSupported`."""
        self._refuse()

    def listen(self, deliver: Callable[[StreamEvent], None]) -> StreamListener:
        """Raise `NotSupported`."""
        raise NotSupported(
            f"This process cannot serve clients, because {_CONDITION.format(self.settings.broadcast_adapter)}, so "
            "messages are sent to anycable-go. Connect clients to anycable-go, or remove the setting."
        )

    def prune(self, *, limit: int = 1000) -> int:
        """Delete nothing, because nothing is stored here."""
        return 0

    def _refuse(self) -> NoReturn:
        raise NotSupported(
            f"The positions and the history of streams cannot be read, because "
            f"{_CONDITION.format(self.settings.broadcast_adapter)} and they are in anycable-go. Its clients can "
            "request history by time: pages can pass them the time of their request, as {% turbo_stream_from %} does. "
            "Or remove the setting, and connect clients to servers of this package."
        )

    # -- resources ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connections of the adapter."""
        self.adapter.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self.adapter.aclose()

    async def _run(self, call: Callable[[], T]) -> T:
        return await run_publish(call)


_CONDITION: Final = "RELIABLE_CABLE['BROADCAST_ADAPTER'] is {!r}"


def _encode(items: Sequence[tuple[str, Message]], *, transient: bool = False) -> Iterable[Sequence[str]]:
    """Yield the messages of each call of the adapter. Each command needs a call of its own, before the broadcasts."""
    broadcasts = []
    for stream, message in items:
        if stream == CONTROL_STREAM:
            yield from ([command] for command in _commands(message.data))
        else:
            broadcasts.append(encode_broadcast(stream, message.data, exclude=message.exclude, transient=transient))
    if broadcasts:
        yield broadcasts


def _commands(control: str) -> Iterable[str]:
    """Return the commands of anycable-go for a control message of this package.

    Messages that end Django logins have no command: anycable-go knows no logins.
    """
    for message in decode(control):
        if isinstance(message, Revocation):
            # anycable-go compares the whole text, so the condition must have all identifiers of the connections.
            yield encode_disconnect(identifiers_text(message.condition), reconnect=message.reconnect)
