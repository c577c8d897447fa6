"""The listener of the Redis stream store."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from reliable_cable.concurrency.tasks import cancel
from reliable_cable.exceptions import StoreError
from reliable_cable.logs import logger
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.redis.client import BaseClient
from reliable_cable.stores.redis.listening import ChannelListener

from .base import NOWHERE, Advanced, Published, StreamEvent, StreamListener, Transient, moved

#: This suffix marks the announcement of a whisper. It follows the id of the session that must not receive the whisper.
#: A server of the previous release regards the suffix as a part of the id, and excludes no session. This is harmless,
#: because the client that whispered is not connected to that server.
WHISPER_SUFFIX: Final = " whisper"
#: The approximate time, in seconds, between two checks of the streams' positions. The checks find messages that pub/sub
#: has lost without an error.
CHECK_INTERVAL: Final = 5.0


class RedisStreamListener(ChannelListener, StreamListener):
    """Announces the messages that are published in Redis, and `Advanced` after the loss of a connection or a message.

    Args:
        client: the Redis client of the store.
        tails: a function that returns the positions of streams.
        deliver: a function that is called with each event.
    """

    def __init__(
        self,
        client: BaseClient,
        tails: Callable[[Sequence[str]], Awaitable[Mapping[str, StreamPosition]]],
        deliver: Callable[[StreamEvent], None],
    ) -> None:
        super().__init__(client)
        self._tails = tails
        self._deliver = deliver
        #: The newest announced position of each stream.
        self._known: dict[str, StreamPosition] = {}
        self._checker: asyncio.Task[None] | None = None

    async def subscribe(self, stream: str) -> None:
        """Start to announce the events of a stream."""
        await self.subscribe_many([stream])

    async def subscribe_many(self, streams: Collection[str]) -> None:
        """Start to announce the events of several streams, with few commands."""
        if self._checker is None:
            self._checker = asyncio.create_task(self._keep_checking(), name="cable-position-check")
        await self._subscribe_channels(streams)

    async def unsubscribe(self, stream: str) -> None:
        """Stop announcing the events of a stream."""
        self._known.pop(stream, None)
        await super().unsubscribe(stream)
        if not self._callbacks and self._checker is not None:
            checker, self._checker = self._checker, None
            await cancel(checker)

    async def fence(self) -> None:
        """Wait until all events that were announced before this call have been delivered, or are known to be lost."""
        await self._pubsub.fence()

    def doubt(self, stream: str) -> None:
        """Announce `Advanced` for a stream at the next regular check of its position, if the stream exists."""
        self._known.pop(stream, None)

    def _receive(self, stream: str, message: bytes | None) -> None:
        event = Advanced(stream) if message is None else parse_event(stream, message)
        if isinstance(event, Published):
            self._known[stream] = event.position
        if event is not None:
            self._deliver(event)

    async def _keep_checking(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL * random.uniform(0.75, 1.25))  # noqa: S311 - not all at once
            try:
                await self.check()
            except StoreError as error:
                logger.debug("The positions of the streams could not be checked: %s", error)

    async def check(self) -> None:
        """Announce `Advanced` for each stream whose position differs from the newest announced position."""
        before = {stream: self._known.get(stream, NOWHERE) for stream in self._callbacks}
        tails = await self._tails(list(before))
        for stream, was in before.items():
            tail = tails[stream]
            if stream in self._callbacks and moved(was, self._known.get(stream, NOWHERE), tail):
                self._known[stream] = tail
                self._deliver(Advanced(stream))


def parse_event(stream: str, message: bytes) -> StreamEvent | None:
    """Return the event in a message on a stream's channel; None if it is a presence event."""
    kind, (head, _, data) = message[:1], message[1:].partition(b"\n")
    if kind == b"m":
        epoch, offset, exclude = head.decode().split(" ", 2)
        return Published(stream, epoch, Entry(int(offset), data.decode(), exclude))
    if kind == b"t":
        exclude = head.decode()
        return Transient(stream, data.decode(), exclude.removesuffix(WHISPER_SUFFIX), exclude.endswith(WHISPER_SUFFIX))
    return Advanced(stream) if kind == b"a" else None
