"""Repairs by a hub: after gaps, after announcements without a message, and after losses of the store."""

from __future__ import annotations

import asyncio
import copy

import pytest

from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.streams.base import Advanced, Published, Transient

from .hubs import Harness, catch_up, offsets


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make repairs read again without a delay, and the store trim without a delay."""
    monkeypatch.setattr("reliable_cable.hub.repair.IDLE_DELAYS", (0.0,) * 5)
    monkeypatch.setattr("reliable_cable.stores.streams.memory.YOUNG_TIME", 0.0)


async def test_what_is_on_its_way_is_not_lost_though_the_store_has_trimmed_it() -> None:
    harness = Harness(HISTORY_SIZE=2)
    _, log = await harness.subscriber()
    await harness.publish()
    events = [harness.append() for _ in range(5)]
    harness.store.on_their_way = list(events[:4])
    harness.hub.deliver(events[4])
    await harness.settled()
    assert offsets(log) == [1, 2, 3, 4, 5, 6]


async def test_what_has_no_position_follows_what_was_announced_before_it() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    # The stream is new to the hub, which has to read it first.
    harness.hub.deliver(harness.append("1"))
    harness.hub.deliver(Transient("s", "2"))
    await harness.settled()
    harness.hub.deliver(Published("s", "of an epoch that was forgotten", Entry(7, "lost")))
    harness.hub.deliver(Transient("s", "3"))
    await harness.settled()
    assert [frame["message"] for frame in log] == [1, 2, 3]


async def test_what_was_announced_and_is_not_in_the_store_yet_is_read_again() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    first = await harness.publish()
    # The new primary announced this, while reads still go to the former one.
    harness.hub.deliver(Published("s", first.epoch, Entry(3, "3")))
    for _ in range(6):
        await asyncio.sleep(0)
    assert offsets(log) == [1]
    harness.append("2")
    harness.append("3")
    await harness.settled()
    assert [frame["message"] for frame in log] == [1, 2, 3]
    assert harness.store.doubted == []


async def test_what_never_comes_is_not_waited_for_for_ever_but_looked_for_later() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    first = await harness.publish()
    reads = harness.store.reads
    harness.hub.deliver(Published("s", first.epoch, Entry(3, "3")))
    await harness.settled()
    assert offsets(log) == [1]
    assert harness.store.doubted == ["s"]
    assert harness.store.reads - reads <= 10


class TestAStreamInWhichMessagesOvertakeEveryRead:
    """A busy stream: the hub has delivered more than a page holds whenever the page comes."""

    async def test_a_subscriber_that_is_behind_is_sent_what_was_read(self) -> None:
        harness = Harness()
        reader, log = await harness.subscriber()
        for _ in range(5):
            await harness.publish()
        reader.suspend()
        reader.cursor = StreamPosition(reader.cursor.epoch, 2)
        log.clear()
        harness.store.overtake = lambda: harness.hub.deliver(harness.append())
        reads = harness.store.reads
        assert await harness.hub.catch_up.send_page(reader.stream, reader)
        assert offsets(log) == [3, 4, 5]
        assert harness.store.reads - reads == 1

    async def test_a_repair_ends(self) -> None:
        harness = Harness()
        _, log = await harness.subscriber()
        await harness.publish()
        harness.store.overtake = lambda: harness.hub.deliver(harness.append())
        reads = harness.store.reads
        harness.hub.deliver(Advanced("s"))
        async with asyncio.timeout(1):
            await harness.settled()
        assert offsets(log) == [1, 2]
        assert harness.store.reads - reads == 1


class TestAStoreThatWentBack:
    """A database that was restored, or failed over to a copy that lacks the newest messages."""

    async def test_begins_a_new_epoch_and_everybody_is_told(self) -> None:
        harness = Harness()
        _, log = await harness.subscriber()
        events = [await harness.publish() for _ in range(5)]
        harness.store.go_back(2)
        await harness.publish('"with an offset that was given before"')
        assert offsets(log) == [1, 2, 3, 4, 5, "lost"]
        event = await harness.publish('"new"')
        assert event.epoch != events[0].epoch
        assert (log[-1]["message"], log[-1]["offset"]) == ("new", 1)

    async def test_one_hub_ends_the_epoch_for_all(self) -> None:
        harness = Harness()
        await harness.subscriber()
        await harness.publish()
        await harness.publish()
        harness.store.go_back(1)
        # Another process has noticed it, and the stream has continued in the new epoch.
        harness.store.forget("s")
        renewed = harness.append()
        harness.hub.deliver(Advanced("s"))
        await harness.settled()
        assert harness.store.position("s").epoch == renewed.epoch

    async def test_an_epoch_that_has_ended_does_not_return(self) -> None:
        harness = Harness()
        _, log = await harness.subscriber()
        old = [await harness.publish() for _ in range(3)]
        backup = copy.deepcopy(harness.store._streams["s"])
        harness.store.forget("s")
        renewed = await harness.publish()
        # The server fails over to a copy that knows nothing of the new epoch.
        harness.store._streams["s"] = backup
        harness.hub.deliver(Advanced("s"))
        await harness.settled()
        last = await harness.publish()
        assert len({old[0].epoch, renewed.epoch, last.epoch}) == 3
        assert [offset for offset in offsets(log) if offset != "lost"] == [1, 2, 3, 1, 1]
        assert log[-1]["epoch"] == last.epoch
        assert "lost" in log[log.index("lost") + 1 :], "subscribers are told of the second loss, too"

    async def test_a_subscriber_that_asks_is_answered_at_once(self) -> None:
        harness = Harness()
        reader, _ = await harness.subscriber()
        for _ in range(5):
            await harness.publish()
        reader.suspend()
        reader.cursor = StreamPosition(reader.cursor.epoch, 3)
        harness.store.go_back(2)
        reads = harness.store.reads
        assert not await catch_up(harness, reader)
        assert harness.store.reads - reads < 10

    async def test_a_hub_that_cannot_follow_ends_with_an_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        harness = Harness()
        reader, _ = await harness.subscriber()
        for _ in range(5):
            await harness.publish()
        monkeypatch.setattr("reliable_cable.hub.catch_up.RETRY_DELAYS", (0.0,) * 4)
        reader.suspend()
        # The client saw this message on another server. This store never had it.
        reader.cursor = StreamPosition(reader.cursor.epoch, 9)
        reads = harness.store.reads
        assert not await catch_up(harness, reader)
        assert harness.store.reads - reads < 20
