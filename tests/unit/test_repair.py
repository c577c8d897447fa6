"""A hub repairs a stream after a gap, after a loss of messages, and while the store lacks an announced message."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.streams.base import Advanced, Published, Transient
from tests.support.subscriber import LoneSubscriber

from .hubs import Harness, catch_up, offsets


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair without delays, and trim messages of any age."""
    monkeypatch.setattr("reliable_cable.hub.repair.IDLE_DELAYS", (0.0,) * 5)
    monkeypatch.setattr("reliable_cable.stores.streams.memory.YOUNG_TIME", 0.0)


async def catching_up(offset: int) -> tuple[Harness, LoneSubscriber, list[Any]]:
    """Publish five messages to a subscriber, and let it continue from another offset.

    Returns:
        The harness, the subscriber, and a list to which its later frames are added.
    """
    harness = Harness()
    subscriber, log = await harness.subscriber()
    for _ in range(5):
        await harness.publish()
    subscriber.suspend()
    subscriber.cursor = StreamPosition(subscriber.cursor.epoch, offset)
    log.clear()
    return harness, subscriber, log


async def test_trimmed_messages_are_not_lost_if_their_announcements_arrive_during_the_repair() -> None:
    harness = Harness(HISTORY_SIZE=2)
    _, log = await harness.subscriber()
    await harness.publish()
    events = [harness.append() for _ in range(5)]
    harness.store.announced_during_fence = list(events[:4])
    harness.hub.deliver(events[4])
    await harness.wait_until_written()
    assert offsets(log) == [1, 2, 3, 4, 5, 6]


async def test_transient_messages_follow_the_kept_messages_that_were_announced_before_them() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    # The hub does not know the epoch of the stream, so it reads the stream first.
    harness.hub.deliver(harness.append("1"))
    harness.hub.deliver(Transient("s", "2"))
    await harness.wait_until_written()
    harness.hub.deliver(Published("s", "a forgotten epoch", Entry(7, "lost")))
    harness.hub.deliver(Transient("s", "3"))
    await harness.wait_until_written()
    assert [frame["message"] for frame in log] == [1, 2, 3]


async def test_the_store_is_read_again_if_it_does_not_have_an_announced_message_yet() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    first = await harness.publish()
    # A new primary announced this message, but reads still go to the former primary.
    harness.hub.deliver(Published("s", first.epoch, Entry(3, "3")))
    for _ in range(6):
        await asyncio.sleep(0)
    assert offsets(log) == [1]
    harness.append("2")
    harness.append("3")
    await harness.wait_until_written()
    assert [frame["message"] for frame in log] == [1, 2, 3]
    assert harness.store.doubted == []


async def test_a_repair_gives_up_on_a_message_that_the_store_never_has_and_a_later_poll_looks_for_it() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    first = await harness.publish()
    reads = harness.store.reads
    harness.hub.deliver(Published("s", first.epoch, Entry(3, "3")))
    await harness.wait_until_written()
    assert offsets(log) == [1]
    assert harness.store.doubted == ["s"]
    assert harness.store.reads - reads <= 10


class TestABusyStream:
    """Whenever a page has been read, the hub has already delivered a newer message."""

    async def test_a_subscriber_that_catches_up_is_sent_the_page_after_one_read(self) -> None:
        harness, subscriber, log = await catching_up(2)
        harness.store.after_read = lambda: harness.hub.deliver(harness.append())
        reads = harness.store.reads
        assert await harness.hub.catch_up.send_page(subscriber.stream, subscriber)
        assert offsets(log) == [3, 4, 5]
        assert harness.store.reads - reads == 1

    async def test_a_repair_ends_after_one_read(self) -> None:
        harness = Harness()
        _, log = await harness.subscriber()
        await harness.publish()
        harness.store.after_read = lambda: harness.hub.deliver(harness.append())
        reads = harness.store.reads
        harness.hub.deliver(Advanced("s"))
        async with asyncio.timeout(30):
            await harness.wait_until_written()
        assert offsets(log) == [1, 2]
        assert harness.store.reads - reads == 1


class TestAStoreThatLostMessages:
    """A database was restored from a backup, or failed over to a replica that lacks the newest messages."""

    async def test_a_new_epoch_begins_and_subscribers_are_told_of_a_loss(self) -> None:
        harness = Harness()
        _, log = await harness.subscriber()
        events = [await harness.publish() for _ in range(5)]
        harness.store.go_back(2)
        await harness.publish('"an offset that was used before"')
        assert offsets(log) == [1, 2, 3, 4, 5, "lost"]
        event = await harness.publish('"new"')
        assert event.epoch != events[0].epoch
        assert (log[-1]["message"], log[-1]["offset"]) == ("new", 1)

    async def test_the_epoch_is_not_ended_again_if_another_hub_has_ended_it(self) -> None:
        harness = Harness()
        await harness.subscriber()
        await harness.publish()
        await harness.publish()
        harness.store.go_back(1)
        # Another process has noticed the loss and ended the epoch.
        harness.store.forget("s")
        renewed = harness.append()
        harness.hub.deliver(Advanced("s"))
        await harness.wait_until_written()
        assert harness.store.position("s").epoch == renewed.epoch

    async def test_an_epoch_that_has_ended_does_not_return(self) -> None:
        harness = Harness()
        _, log = await harness.subscriber()
        former = [await harness.publish() for _ in range(3)]
        backup = copy.deepcopy(harness.store._streams["s"])
        harness.store.forget("s")
        renewed = await harness.publish()
        # The server fails over to a replica that does not have the new epoch.
        harness.store._streams["s"] = backup
        harness.hub.deliver(Advanced("s"))
        await harness.wait_until_written()
        last = await harness.publish()
        assert len({former[0].epoch, renewed.epoch, last.epoch}) == 3
        assert [offset for offset in offsets(log) if offset != "lost"] == [1, 2, 3, 1, 1]
        assert log[-1]["epoch"] == last.epoch
        assert "lost" in log[log.index("lost") + 1 :], "subscribers were not told of the second loss"

    async def test_a_subscriber_that_catches_up_is_told_of_a_loss_after_few_reads(self) -> None:
        harness, subscriber, _ = await catching_up(3)
        harness.store.go_back(2)
        reads = harness.store.reads
        assert not await catch_up(harness, subscriber)
        assert harness.store.reads - reads < 10

    async def test_a_subscriber_that_is_ahead_of_the_store_is_told_of_a_loss_after_few_reads(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The client received this message from another server; this store never had it.
        harness, subscriber, _ = await catching_up(9)
        monkeypatch.setattr("reliable_cable.hub.catch_up.RETRY_DELAYS", (0.0,) * 4)
        reads = harness.store.reads
        assert not await catch_up(harness, subscriber)
        assert harness.store.reads - reads < 20


class TestAStreamWithoutMessages:
    """A failover can lose the only messages of a stream before this process has read them."""

    @staticmethod
    async def start() -> Harness:
        harness = Harness()
        harness.store.lineage = "first"
        return harness

    async def test_subscribers_are_told_of_a_possible_loss_after_a_failover(self) -> None:
        harness = await self.start()
        _, log = await harness.subscriber()
        harness.append("lost, and its announcement, too")
        harness.store.fail_over("second")
        await harness.publish()
        await harness.publish()
        assert offsets(log) == ["lost", 1, 2]

    async def test_they_are_told_once_if_the_stream_remains_without_messages(self) -> None:
        harness = await self.start()
        _, log = await harness.subscriber()
        for lineage in ("second", "second", "third"):
            harness.store.fail_over(lineage)
            harness.hub.deliver(Advanced("s"))
            await harness.wait_until_written()
        await harness.publish()
        assert offsets(log) == ["lost", "lost", 1]

    async def test_a_subscriber_that_catches_up_is_told_too(self) -> None:
        harness = await self.start()
        subscriber, log = await harness.subscriber()
        subscriber.suspend()
        harness.append("lost")
        harness.store.fail_over("second")
        await harness.publish()
        assert not await catch_up(harness, subscriber)
        await harness.publish()
        assert offsets(log)[-1] == 2

    async def test_the_stream_may_have_lost_all_its_messages_before(self) -> None:
        harness = await self.start()
        _, log = await harness.subscriber()
        await harness.publish()
        harness.store.fail_over("second")
        harness.hub.deliver(Advanced("s"))
        await harness.wait_until_written()
        harness.append("lost")
        harness.store.fail_over("third")
        await harness.publish()
        assert offsets(log) == [1, "lost", "lost", 1]

    async def test_nothing_is_lost_while_the_lineage_stays(self) -> None:
        harness = await self.start()
        _, log = await harness.subscriber()
        harness.hub.deliver(Advanced("s"))
        await harness.wait_until_written()
        await harness.publish()
        assert offsets(log) == [1]
