"""`HistoryReader` reads a page once for requests that come together, and again if it lacks new messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_cable.conf import read_settings
from reliable_cable.connection.account import Account
from reliable_cable.connection.outbox import Outbox
from reliable_cable.exceptions import StoreError
from reliable_cable.hub import history as history_module
from reliable_cable.hub.history import PAGE_LENGTH, PAGE_SIZE, HistoryReader
from reliable_cable.hub.subscriber import SubscriberGroup
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage, advance, recoverable
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.memory import MemoryStreamStore
from tests.support.examples import examples
from tests.support.subscriber import LoneSubscriber


class Store(MemoryStreamStore):
    """Records reads. They fail while `broken` is true, and wait while `open` is not set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(read_settings({"ENGINE": "memory", "HISTORY_SIZE": 1000, **options}))
        self.reads: list[int] = []
        self.broken = False
        self.open = asyncio.Event()
        self.open.set()

    async def aread(
        self,
        stream: str,
        *,
        after: int,
        limit: int,
        max_size: int | None = None,
        known: StreamPosition | None = None,
        following: bool = False,
    ) -> StreamPage:
        self.reads.append(after)
        page = self.read(stream, after=after, limit=limit, max_size=max_size, following=following)
        await self.open.wait()
        if self.broken:
            raise StoreError("broken")
        return page

    def add(self, count: int = 1) -> StreamPosition:
        """Append messages. Return the position of the stream after them."""
        return self.append([("s", Message(str(number + 1))) for number in range(count)])[-1]


def offsets(page: StreamPage) -> list[int]:
    return [entry.offset for entry in page.entries]


async def test_requests_that_come_together_share_one_read() -> None:
    store = Store()
    position = store.add(5)
    history = HistoryReader(store)
    start = StreamPosition(position.epoch, 2)
    pages = await asyncio.gather(*(history.read("s", start, position) for _ in range(10)))
    assert store.reads == [2]
    assert all(offsets(page) == [3, 4, 5] for page in pages)


async def test_a_request_for_less_that_comes_soon_after_gets_the_same_page() -> None:
    store = Store()
    position = store.add(5)
    history = HistoryReader(store)
    first = await history.read("s", StreamPosition(position.epoch, 1), position)
    assert await history.read("s", StreamPosition(position.epoch, 3), position) is first
    assert await history.read("s", StreamPosition("", 5), position) is first
    assert store.reads == [1]


async def test_the_second_read_of_a_first_page_gets_the_same_page() -> None:
    """A page is read twice if it was too large to be held until it is sent."""
    store = Store()
    position = store.add(5)
    history = HistoryReader(store)
    start = StreamPosition(position.epoch, 2)
    first = await history.read("s", start, position)
    assert await history.read("s", start, position, following=True) is first
    assert store.reads == [2]


async def test_a_subscriber_that_was_away_gets_no_page_of_one_that_was_not() -> None:
    store = Store(HISTORY_SIZE=3)
    position = store.add(5)
    history = HistoryReader(store)
    start = StreamPosition(position.epoch, 1)
    assert offsets(await history.read("s", start, position, following=True)) == [2, 3, 4, 5]
    assert offsets(await history.read("s", start, position)) == [3, 4, 5]


async def test_a_request_for_more_or_for_another_epoch_or_ahead_of_the_stream_reads_the_store() -> None:
    store = Store()
    position = store.add(5)
    history = HistoryReader(store)
    await history.read("s", StreamPosition(position.epoch, 3), position)
    for start in (StreamPosition(position.epoch, 2), StreamPosition("another", 3), StreamPosition(position.epoch, 9)):
        await history.read("s", start, position)
    assert store.reads == [3, 2, 3, 9]


async def test_a_page_that_ends_before_the_position_of_the_hub_is_not_used() -> None:
    store = Store()
    position = store.add(5)
    history = HistoryReader(store)
    await history.read("s", StreamPosition(position.epoch, 3), position)
    position = store.add()
    assert offsets(await history.read("s", StreamPosition(position.epoch, 3), position)) == [4, 5, 6]


async def test_a_page_of_a_former_epoch_is_not_used() -> None:
    store = Store()
    former = store.add(5)
    history = HistoryReader(store)
    await history.read("s", StreamPosition("", 0), former)
    store.forget("s")
    position = store.add(2)
    page = await history.read("s", StreamPosition("", 0), position)
    assert (page.epoch, offsets(page)) == (position.epoch, [1, 2])


async def test_a_read_that_began_before_the_hub_received_another_message_is_not_shared() -> None:
    store = Store()
    position = store.add(5)
    history = HistoryReader(store)
    store.open.clear()
    early = asyncio.create_task(history.read("s", StreamPosition(position.epoch, 3), position))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert store.reads == [3]
    late = asyncio.create_task(history.read("s", StreamPosition(position.epoch, 3), store.add()))
    await asyncio.sleep(0)
    store.open.set()
    assert (offsets(await early), offsets(await late)) == ([4, 5], [4, 5, 6])


async def test_a_stream_that_had_no_messages_for_the_hub_is_always_read() -> None:
    store = Store()
    position = store.add(2)
    history = HistoryReader(store)
    for _ in range(2):
        await history.read("s", StreamPosition(position.epoch, 0), StreamPosition("", 0))
    assert len(store.reads) == 2


async def test_the_entries_after_a_full_page_are_read() -> None:
    store = Store()
    position = store.add(PAGE_LENGTH + 5)
    history = HistoryReader(store)
    page = await history.read("s", StreamPosition(position.epoch, 0), position)
    assert offsets(page)[-1] == PAGE_LENGTH
    rest = await history.read("s", StreamPosition(position.epoch, PAGE_LENGTH), position)
    assert offsets(rest) == list(range(PAGE_LENGTH + 1, PAGE_LENGTH + 6))


async def test_a_page_of_large_entries_is_short_and_the_entries_after_it_are_read() -> None:
    store = Store()
    large = '"' + "x" * (PAGE_SIZE // 4) + '"'
    position = store.append([("s", Message(large)) for _ in range(12)])[-1]
    history = HistoryReader(store)
    page = await history.read("s", StreamPosition(position.epoch, 0), position)
    assert offsets(page) == [1, 2, 3, 4]
    rest = await history.read("s", StreamPosition(position.epoch, 4), position)
    assert offsets(rest) == [5, 6, 7, 8]
    assert store.reads == [0, 4]


async def test_a_page_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "PAGE_TTL", 0)
    store = Store()
    position = store.add(5)
    history = HistoryReader(store)
    start = StreamPosition(position.epoch, 1)
    await history.read("s", start, position)
    await history.read("s", start, position)
    assert store.reads == [1, 1]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not history._pages
    assert (history._size, history._frames_size, history._timer) == (0, 0, None)


async def test_a_failed_read_fails_all_requests_that_share_it_and_the_next_request_reads_again() -> None:
    store = Store()
    position = store.add(5)
    history = HistoryReader(store)
    store.broken = True
    start = StreamPosition(position.epoch, 1)
    outcomes = await asyncio.gather(*(history.read("s", start, position) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreError] * 3
    store.broken = False
    assert offsets(await history.read("s", start, position)) == [2, 3, 4, 5]
    assert store.reads == [1, 1]


async def test_a_cancelled_request_does_not_disturb_the_others() -> None:
    store = Store()
    position = store.add(5)
    history = HistoryReader(store)
    store.open.clear()
    tasks = [asyncio.create_task(history.read("s", StreamPosition(position.epoch, 3), position)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    store.open.set()
    assert [offsets(await task) for task in tasks[1:]] == [[4, 5], [4, 5]]
    assert store.reads == [3]


class TestFrames:
    def subscribe(self, group: SubscriberGroup, count: int) -> None:
        async def send(message: dict[str, Any]) -> None: ...

        for _ in range(count):
            outbox = Outbox(send, account=Account(1), overflow=lambda: None)
            group.subscribers[LoneSubscriber(outbox, group.identifier, group.stream_id, ())] = None

    async def read_page(self) -> tuple[HistoryReader, StreamPage]:
        store = Store()
        position = store.add(3)
        history = HistoryReader(store)
        return history, await history.read("s", StreamPosition(position.epoch, 0), position)

    async def test_each_frame_is_encoded_once_for_the_subscribers_of_a_group(self) -> None:
        history, page = await self.read_page()
        group, other = SubscriberGroup("I", "s"), SubscriberGroup("J", "s")
        self.subscribe(group, 2)
        self.subscribe(other, 2)
        first = [history.encode(group, "s", page.epoch, entry) for entry in page.entries]
        assert [json.loads(frame)["offset"] for frame in first] == [1, 2, 3]
        second = [history.encode(group, "s", page.epoch, entry) for entry in page.entries]
        assert all(frame is same for frame, same in zip(first, second, strict=True))
        assert json.loads(history.encode(other, "s", page.epoch, page.entries[0]))["identifier"] == "J"

    async def test_frames_for_a_single_subscriber_or_of_another_epoch_are_not_cached(self) -> None:
        history, page = await self.read_page()
        single, group = SubscriberGroup("I", "s"), SubscriberGroup("J", "s")
        self.subscribe(single, 1)
        self.subscribe(group, 2)
        entry = page.entries[0]
        assert history.encode(single, "s", page.epoch, entry) is not history.encode(single, "s", page.epoch, entry)
        changed = Entry(entry.offset, '"another epoch"')
        history.encode(group, "s", page.epoch, entry)
        assert json.loads(history.encode(group, "s", "other", changed))["message"] == "another epoch"

    async def test_entries_that_several_subscribers_need_are_encoded_as_one_block(self) -> None:
        history, page = await self.read_page()
        group, other = SubscriberGroup("I", "s"), SubscriberGroup("J", "s")
        self.subscribe(group, 2)
        self.subscribe(other, 2)

        def block(group: SubscriberGroup, entries: Sequence[Entry], limit: int = 1000) -> bytes | None:
            return history.block(group, "s", page.epoch, entries, limit)

        wires = [history.encode(group, "s", page.epoch, entry).wire for entry in page.entries]
        assert block(group, page.entries) is None
        assert block(group, page.entries) == b"".join(wires)
        assert block(group, page.entries) is block(group, page.entries)
        # Other entries, other groups and other epochs have other blocks.
        assert block(group, page.entries[1:]) is None
        assert block(group, page.entries[1:]) == b"".join(wires[1:])
        assert block(other, page.entries) is None
        assert b'"J"' in (block(other, page.entries) or b"")
        assert history.block(group, "s", "other", page.entries, 1000) is None
        assert history.block(group, "s", "other", page.entries, 1000) is None

    async def test_there_is_no_block_without_entries_or_above_the_limit_or_for_a_single_subscriber(self) -> None:
        history, page = await self.read_page()
        group, single = SubscriberGroup("I", "s"), SubscriberGroup("J", "s")
        self.subscribe(group, 2)
        self.subscribe(single, 1)
        for _ in range(3):
            assert history.block(group, "s", page.epoch, [], 1000) is None
            assert history.block(group, "s", page.epoch, page.entries, 10) is None
            assert history.block(single, "s", page.epoch, page.entries, 1000) is None

    async def test_blocks_count_in_the_size_of_the_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        history, page = await self.read_page()
        group = SubscriberGroup("I", "s")
        self.subscribe(group, 2)
        frames = [history.encode(group, "s", page.epoch, entry) for entry in page.entries]
        history.block(group, "s", page.epoch, page.entries, 1000)
        block = history.block(group, "s", page.epoch, page.entries, 1000) or b""
        assert history._frames_size == sum(map(len, frames)) + len(block)
        monkeypatch.setattr(history_module, "CACHE_SIZE", history._frames_size)
        history.block(group, "s", page.epoch, page.entries[:1], 1000)
        for _ in range(2):
            assert history.block(group, "s", page.epoch, page.entries[:1], 1000) == frames[0].wire
        assert history._frames_size == sum(map(len, frames)) + len(block)
        history._drop(("s", False))
        assert history._frames_size == 0

    async def test_the_size_of_the_cache_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_module, "CACHE_SIZE", 100)
        store = Store()
        positions = {name: store.append([(name, Message("1" * 40))])[0] for name in ("a", "b", "c")}
        positions["long"] = store.append([("long", Message("1" * 200))])[0]
        history = HistoryReader(store)
        for name, position in positions.items():
            await history.read(name, StreamPosition(position.epoch, 0), position)
        assert list(history._pages) == [("b", False), ("c", False)]
        group = SubscriberGroup("I", "c")
        self.subscribe(group, 2)
        page = await history.read("c", StreamPosition(positions["c"].epoch, 0), positions["c"])
        history.encode(group, "c", page.epoch, page.entries[0])
        assert not history._pages["c", False].frames


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 4)),
        st.tuples(st.just("hub catches up"), st.just(0)),
        st.tuples(st.just("forget"), st.just(0)),
        st.tuples(st.just("read"), st.integers(0, 12)),
        st.tuples(st.just("read without an epoch"), st.integers(0, 12)),
        st.tuples(st.just("read without a break"), st.integers(0, 12)),
    ),
    max_size=40,
)


@given(STEPS, st.integers(2, 6))
@settings(max_examples=examples(300), deadline=None)
def test_a_cached_page_never_has_less_than_a_fresh_read(steps: list[tuple[str, int]], size: int) -> None:
    async def run() -> None:
        store = Store(HISTORY_SIZE=size)
        position = store.add()
        history = HistoryReader(store)
        log: dict[tuple[str, int], str] = {}
        for step, number in steps:
            for entry in store.read("s", after=0, limit=1000, following=True).entries:
                log[store.position("s").epoch, entry.offset] = entry.data
            if step == "add":
                store.add(number)
            elif step == "hub catches up":
                position = store.position("s")
            elif step == "forget":
                store.forget("s")
            else:
                start = StreamPosition("" if step == "read without an epoch" else position.epoch, number)
                following = step == "read without a break"
                page = await history.read("s", start, position, following=following)
                fresh = store.read("s", after=number, limit=PAGE_LENGTH, following=following)
                if page.epoch != fresh.epoch:
                    # The hub does not know the new epoch yet, so the result is as if that epoch began later.
                    assert page.epoch == position.epoch
                    assert page.tail >= position.offset
                    continue
                # A cached page may still have entries that the store has trimmed.
                assert recoverable(start, page) >= recoverable(start, fresh)
                from_cache, from_store = (advance(start, each, upto=position.offset) for each in (page, fresh))
                if not from_store.lost:
                    assert from_cache == from_store
                assert all(log[page.epoch, entry.offset] == entry.data for entry in from_cache.entries)

    asyncio.run(run())
