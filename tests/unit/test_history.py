"""HistoryReader of history: read once for all who ask at once, and never too old for who asks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_cable.conf import read_settings
from reliable_cable.connection.outbox import Outbox
from reliable_cable.exceptions import StoreError
from reliable_cable.hub import history as pages_module
from reliable_cable.hub.history import PAGE_SIZE, HistoryReader
from reliable_cable.hub.subscriber import SubscriberGroup
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage, advance, recoverable
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.memory import MemoryStreamStore
from tests.support.subscriber import LoneSubscriber


class Store(MemoryStreamStore):
    """Counts reads; they fail while `broken`, and wait while `open` is not set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(read_settings({"ENGINE": "memory", "HISTORY_SIZE": 1000, **options}))
        self.reads: list[int] = []
        self.broken = False
        self.open = asyncio.Event()
        self.open.set()

    async def aread(
        self, stream: str, *, after: int, limit: int, known: StreamPosition | None = None, following: bool = False
    ) -> StreamPage:
        self.reads.append(after)
        page = self.read(stream, after=after, limit=limit, following=following)
        await self.open.wait()
        if self.broken:
            raise StoreError("broken")
        return page

    def add(self, count: int = 1) -> StreamPosition:
        """Append messages; return where the stream then stands."""
        return self.append([("s", Message(str(number + 1))) for number in range(count)])[-1]


def offsets(page: StreamPage) -> list[int]:
    return [entry.offset for entry in page.entries]


async def test_all_who_ask_at_once_share_one_read() -> None:
    store = Store()
    hub = store.add(5)
    pages = HistoryReader(store)
    start = StreamPosition(hub.epoch, 2)
    found = await asyncio.gather(*(pages.read("s", start, hub) for _ in range(10)))
    assert store.reads == [2]
    assert all(offsets(page) == [3, 4, 5] for page in found)


async def test_who_asks_soon_after_for_less_gets_the_same_page() -> None:
    store = Store()
    hub = store.add(5)
    pages = HistoryReader(store)
    first = await pages.read("s", StreamPosition(hub.epoch, 1), hub)
    assert await pages.read("s", StreamPosition(hub.epoch, 3), hub) is first
    assert await pages.read("s", StreamPosition("", 5), hub) is first
    assert store.reads == [1]


async def test_who_asks_for_more_or_for_another_epoch_or_is_ahead_has_it_read() -> None:
    store = Store()
    hub = store.add(5)
    pages = HistoryReader(store)
    await pages.read("s", StreamPosition(hub.epoch, 3), hub)
    for start in (StreamPosition(hub.epoch, 2), StreamPosition("another", 3), StreamPosition(hub.epoch, 9)):
        await pages.read("s", start, hub)
    assert store.reads == [3, 2, 3, 9]


async def test_a_page_that_ends_before_the_hub_is_not_used() -> None:
    store = Store()
    hub = store.add(5)
    pages = HistoryReader(store)
    await pages.read("s", StreamPosition(hub.epoch, 3), hub)
    hub = store.add()
    assert offsets(await pages.read("s", StreamPosition(hub.epoch, 3), hub)) == [4, 5, 6]


async def test_a_page_of_a_former_epoch_is_not_used() -> None:
    store = Store()
    former = store.add(5)
    pages = HistoryReader(store)
    await pages.read("s", StreamPosition("", 0), former)
    store.forget("s")
    hub = store.add(2)
    page = await pages.read("s", StreamPosition("", 0), hub)
    assert (page.epoch, offsets(page)) == (hub.epoch, [1, 2])


async def test_a_read_that_was_begun_before_the_hub_moved_on_is_not_shared() -> None:
    store = Store()
    hub = store.add(5)
    pages = HistoryReader(store)
    store.open.clear()
    early = asyncio.create_task(pages.read("s", StreamPosition(hub.epoch, 3), hub))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert store.reads == [3]
    late = asyncio.create_task(pages.read("s", StreamPosition(hub.epoch, 3), store.add()))
    await asyncio.sleep(0)
    store.open.set()
    assert (offsets(await early), offsets(await late)) == ([4, 5], [4, 5, 6])


async def test_a_stream_that_the_hub_knows_nothing_of_is_always_read() -> None:
    store = Store()
    hub = store.add(2)
    pages = HistoryReader(store)
    for known in (None, StreamPosition("", 0)):
        for _ in range(2):
            await pages.read("s", StreamPosition(hub.epoch, 0), known)
    assert len(store.reads) == 4


async def test_a_full_page_is_not_taken_for_the_end() -> None:
    store = Store()
    hub = store.add(PAGE_SIZE + 5)
    pages = HistoryReader(store)
    page = await pages.read("s", StreamPosition(hub.epoch, 0), hub)
    assert offsets(page)[-1] == PAGE_SIZE
    rest = await pages.read("s", StreamPosition(hub.epoch, PAGE_SIZE), hub)
    assert offsets(rest) == list(range(PAGE_SIZE + 1, PAGE_SIZE + 6))


async def test_a_page_is_not_kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "PAGE_TTL", 0)
    store = Store()
    hub = store.add(5)
    pages = HistoryReader(store)
    start = StreamPosition(hub.epoch, 1)
    await pages.read("s", start, hub)
    await pages.read("s", start, hub)
    assert store.reads == [1, 1]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not pages._pages
    assert (pages._size, pages._frames_size, pages._timer) == (0, 0, None)


async def test_a_read_that_fails_fails_for_all_and_the_next_one_reads_anew() -> None:
    store = Store()
    hub = store.add(5)
    pages = HistoryReader(store)
    store.broken = True
    start = StreamPosition(hub.epoch, 1)
    outcomes = await asyncio.gather(*(pages.read("s", start, hub) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreError] * 3
    store.broken = False
    assert offsets(await pages.read("s", start, hub)) == [2, 3, 4, 5]
    assert store.reads == [1, 1]


async def test_one_who_goes_meanwhile_does_not_disturb_the_others() -> None:
    store = Store()
    hub = store.add(5)
    pages = HistoryReader(store)
    store.open.clear()
    tasks = [asyncio.create_task(pages.read("s", StreamPosition(hub.epoch, 3), hub)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    store.open.set()
    assert [offsets(await task) for task in tasks[1:]] == [[4, 5], [4, 5]]
    assert store.reads == [3]


class TestFrames:
    def fill(self, group: SubscriberGroup, count: int) -> None:
        async def send(message: dict[str, Any]) -> None: ...

        for _ in range(count):
            outbox = Outbox(send, limit=1, overflow=lambda: None)
            group.subscribers[LoneSubscriber(outbox, group.identifier, group.stream_id, ())] = None

    async def stage(self) -> tuple[HistoryReader, StreamPage]:
        store = Store()
        hub = store.add(3)
        pages = HistoryReader(store)
        return pages, await pages.read("s", StreamPosition(hub.epoch, 0), hub)

    async def test_each_is_made_once_for_all_of_a_group(self) -> None:
        pages, page = await self.stage()
        group, other = SubscriberGroup("I", "s"), SubscriberGroup("J", "s")
        self.fill(group, 2)
        self.fill(other, 2)
        made = [pages.encode(group, "s", page.epoch, entry) for entry in page.entries]
        assert [json.loads(frame)["offset"] for frame in made] == [1, 2, 3]
        again = [pages.encode(group, "s", page.epoch, entry) for entry in page.entries]
        assert all(one is two for one, two in zip(made, again, strict=True))
        assert json.loads(pages.encode(other, "s", page.epoch, page.entries[0]))["identifier"] == "J"

    async def test_those_of_one_reader_or_of_another_epoch_are_not_kept(self) -> None:
        pages, page = await self.stage()
        alone, group = SubscriberGroup("I", "s"), SubscriberGroup("J", "s")
        self.fill(alone, 1)
        self.fill(group, 2)
        entry = page.entries[0]
        assert pages.encode(alone, "s", page.epoch, entry) is not pages.encode(alone, "s", page.epoch, entry)
        changed = Entry(entry.offset, '"of another epoch"')
        pages.encode(group, "s", page.epoch, entry)
        assert json.loads(pages.encode(group, "s", "other", changed))["message"] == "of another epoch"

    async def test_what_is_kept_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages_module, "CACHE_SIZE", 100)
        store = Store()
        hubs = {name: store.append([(name, Message("1" * 40))])[0] for name in ("a", "b", "c")}
        hubs["long"] = store.append([("long", Message("1" * 200))])[0]
        pages = HistoryReader(store)
        for name, hub in hubs.items():
            await pages.read(name, StreamPosition(hub.epoch, 0), hub)
        assert list(pages._pages) == [("b", False), ("c", False)]
        group = SubscriberGroup("I", "c")
        self.fill(group, 2)
        page = await pages.read("c", StreamPosition(hubs["c"].epoch, 0), hubs["c"])
        pages.encode(group, "c", page.epoch, page.entries[0])
        assert not pages._pages["c", False].frames


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 4)),
        st.tuples(st.just("hear"), st.just(0)),
        st.tuples(st.just("forget"), st.just(0)),
        st.tuples(st.just("ask"), st.integers(0, 12)),
        st.tuples(st.just("ask without an epoch"), st.integers(0, 12)),
    ),
    max_size=40,
)


@given(STEPS, st.integers(2, 6))
@settings(max_examples=300, deadline=None)
def test_whatever_was_kept_nobody_gets_less_than_by_a_read_of_its_own(steps: list[tuple[str, int]], size: int) -> None:
    async def run() -> None:
        store = Store(HISTORY_SIZE=size)
        hub = store.add()
        pages = HistoryReader(store)
        log: dict[tuple[str, int], str] = {}
        for step, number in steps:
            for entry in store.read("s", after=0, limit=1000).entries:
                log[store.position("s").epoch, entry.offset] = entry.data
            if step == "add":
                store.add(number)
            elif step == "hear":
                hub = store.position("s")
            elif step == "forget":
                store.forget("s")
            else:
                start = StreamPosition(hub.epoch if step == "ask" else "", number)
                page = await pages.read("s", start, hub)
                fresh = store.read("s", after=number, limit=PAGE_SIZE)
                if page.epoch != fresh.epoch:
                    # The hub has not heard of the new epoch: it is as if that came a moment later.
                    assert page.epoch == hub.epoch
                    assert page.tail >= hub.offset
                    continue
                # What was trimmed meanwhile may still be had.
                assert recoverable(start, page) >= recoverable(start, fresh)
                ours, theirs = (advance(start, each, upto=hub.offset) for each in (page, fresh))
                if not theirs.lost:
                    assert ours == theirs
                assert all(log[page.epoch, entry.offset] == entry.data for entry in ours.entries)

    asyncio.run(run())
