"""Writers that append to a stream while a Redis Cluster changes or a Redis fails, and checks of what they stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from reliable_cable.exceptions import BroadcastError, BroadcastUncertain
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.conftest import until


async def append(store: RedisStreamStore, stream: str, data: str) -> StreamPosition:
    (position,) = await store.aappend([(stream, Message(data))])
    return position


class Writer:
    """Appends messages to a stream one after another, and records the results."""

    def __init__(self, store: RedisStreamStore, stream: str) -> None:
        self._store = store
        self._stream = stream
        #: The positions that the store has returned, by the data of the message.
        self.stored: dict[str, StreamPosition] = {}
        self.failed: set[str] = set()
        self.uncertain: set[str] = set()

    @property
    def epochs(self) -> set[str]:
        """The epochs of the messages that were stored."""
        return {position.epoch for position in self.stored.values()}

    async def run(self) -> None:
        number = 0
        while True:
            number += 1
            data = f'"{number}"'
            try:
                self.stored[data] = await append(self._store, self._stream, data)
            except BroadcastUncertain:
                self.uncertain.add(data)
            except BroadcastError:
                self.failed.add(data)
            await asyncio.sleep(0.001)


@asynccontextmanager
async def writing(store: RedisStreamStore, stream: str) -> AsyncIterator[Writer]:
    """Append to a stream during a block."""
    writer = Writer(store, stream)
    task = asyncio.create_task(writer.run())
    await until(lambda: len(writer.stored) > 20)
    yield writer
    seen = len(writer.stored)
    await until(lambda: len(writer.stored) > seen + 20)
    task.cancel()
    await asyncio.wait([task])


async def check_history(store: RedisStreamStore, stream: str, writer: Writer) -> None:
    """Check the messages of a writer against the history.

    In the newest epoch, each stored message is at the position that the store returned, and none is stored twice.
    """
    page = await store.aread(stream, after=0, limit=100_000)
    entries = {entry.offset: entry.data for entry in page.entries}
    assert list(entries) == list(range(1, page.tail + 1))
    assert len(set(entries.values())) == len(entries)
    for data, position in writer.stored.items():
        assert position.epoch != page.epoch or entries[position.offset] == data
    assert not writer.failed & set(entries.values())
    assert page.epoch in writer.epochs
