"""Even if announcements are lost, live subscribers get each message once and in order, or are told of a loss."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliable_cable.connection.account import Account
from reliable_cable.connection.outbox import Outbox
from reliable_cable.exceptions import StoreError
from reliable_cable.hub import hub as hub_module
from reliable_cable.hub.subscriber import MAX_HELD, SubscriberGroup
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.streams.base import Advanced, Message, Published, Transient
from tests.support.examples import examples
from tests.support.subscriber import LoneSubscriber

from .hubs import Harness, catch_up, offsets
from .wire import until


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair without delays, and trim messages of any age."""
    monkeypatch.setattr("reliable_cable.hub.repair.IDLE_DELAYS", (0.0,) * 5)
    monkeypatch.setattr("reliable_cable.stores.streams.memory.YOUNG_TIME", 0.0)


async def test_a_message_is_sent_at_once_and_encoded_once_for_each_identifier_and_stream_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness()
    _, first = await harness.subscriber("A")
    _, second = await harness.subscriber("A")
    _, other = await harness.subscriber("B", "s#1")
    _, base = await harness.subscriber("A", None)
    calls: list[int] = []
    encode = SubscriberGroup.encode

    def counting(group: SubscriberGroup, epoch: str, offset: int, data: str) -> str:
        calls.append(offset)
        return encode(group, epoch, offset, data)

    monkeypatch.setattr(SubscriberGroup, "encode", counting)
    event = await harness.publish('{"x":1}')
    frame = {"identifier": "A", "message": {"x": 1}, "stream_id": "s", "epoch": event.epoch, "offset": 1}
    assert first == second == [frame]
    assert other == [{**frame, "identifier": "B", "stream_id": "s#1"}]
    assert base == [{"identifier": "A", "message": {"x": 1}}]
    assert len(calls) == 3


async def test_a_repeated_message_is_dropped_and_a_gap_is_filled_from_the_store() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    events = [harness.append() for _ in range(4)]
    harness.hub.deliver(events[0])
    harness.hub.deliver(events[0])
    harness.hub.deliver(events[3])
    await harness.wait_until_written()
    harness.hub.deliver(events[1])
    assert offsets(log) == [1, 2, 3, 4]


async def test_a_message_whose_announcement_was_lost_is_read_when_the_store_reports_a_new_position() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    harness.append()
    harness.hub.deliver(Advanced("s"))
    await harness.wait_until_written()
    assert offsets(log) == [1]


async def test_trimmed_messages_are_reported_as_lost_and_the_rest_follows() -> None:
    harness = Harness(HISTORY_SIZE=2)
    _, log = await harness.subscriber()
    events = [harness.append() for _ in range(5)]
    harness.hub.deliver(events[4])
    await harness.wait_until_written()
    assert offsets(log) == ["lost", 4, 5]


async def test_a_burst_whose_first_messages_were_trimmed_is_sent_from_the_announcements() -> None:
    harness = Harness(HISTORY_SIZE=2)
    _, log = await harness.subscriber()
    for event in [harness.append() for _ in range(20)]:
        harness.hub.deliver(event)
    await harness.wait_until_written()
    assert offsets(log) == list(range(1, 21)), "the burst began before the hub knew the epoch"
    events = [harness.append() for _ in range(10)]
    harness.hub.deliver(events[1])
    harness.hub.deliver(events[0])
    for event in events[2:]:
        harness.hub.deliver(event)
    await harness.wait_until_written()
    assert offsets(log) == list(range(1, 31))


async def test_a_message_of_a_former_epoch_is_not_sent() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    former = harness.append()
    harness.store.forget("s")
    harness.hub.deliver(former)
    harness.hub.deliver(harness.append('"new"'))
    await harness.wait_until_written()
    notice, frame = log
    # The deleted message came after the subscriber's position.
    assert (notice, frame["message"]) == ("lost", "new")


async def test_a_new_epoch_is_reported_as_a_loss_and_starts_at_offset_1() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    for _ in range(3):
        await harness.publish()
    harness.store.forget("s")
    harness.hub.deliver(harness.append())
    await harness.wait_until_written()
    assert offsets(log) == [1, 2, 3, "lost", 1]


async def test_a_failing_store_delays_messages_and_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliable_cable.hub.repair.RETRY_DELAY", 0.001)
    harness = Harness()
    _, log = await harness.subscriber()
    events = [harness.append() for _ in range(3)]
    harness.store.broken = True
    harness.hub.deliver(events[2])
    await asyncio.sleep(0.01)
    assert log == []
    harness.store.broken = False
    await harness.wait_until_written()
    assert offsets(log) == [1, 2, 3]


async def test_a_late_repeat_from_a_forgotten_epoch_is_not_sent_as_the_first_message_of_the_next_one() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    old = harness.append()
    for event in (old, Advanced("s"), old):
        if isinstance(event, Advanced):
            harness.store.forget("s")
        harness.hub.deliver(event)
        await harness.wait_until_written()
    assert offsets(log) == [1, "lost"]


async def test_opening_a_stream_fails_in_time_while_the_store_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliable_cable.hub.hub.OPEN_TIMEOUT", 0.05)
    harness = Harness()

    async def hang(stream: str) -> StreamPosition:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(harness.store, "aposition", hang)
    with pytest.raises(StoreError, match="was not opened"):
        async with asyncio.timeout(10):
            await harness.subscriber()
    monkeypatch.undo()
    _, log = await harness.subscriber()
    await harness.publish()
    assert offsets(log) == [1], "the next subscriber did not open the stream again"


async def test_an_opening_that_its_callers_gave_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    presence, proceed = harness.hub.presence, asyncio.Event()
    subscribe = presence.rosters.subscribe

    async def slow(stream: str) -> None:
        await proceed.wait()
        await subscribe(stream)

    monkeypatch.setattr(presence.rosters, "subscribe", slow)

    async def send(message: dict[str, Any]) -> None: ...

    subscriber = LoneSubscriber(Outbox(send, account=Account(1), overflow=lambda: None), "I", "s", ())
    with pytest.raises(StoreError, match="in time"):
        await harness.hub.subscribe("s", subscriber, until=0)
    proceed.set()
    while harness.hub._streams or harness.hub._closing:  # noqa: ASYNC110 - the condition is a private state
        await asyncio.sleep(0)
    assert not presence._served


async def test_an_opening_that_fails_for_nobody_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    harness = Harness()

    async def fail(stream: str) -> StreamPosition:
        await asyncio.sleep(0)
        raise StoreError("broken")

    monkeypatch.setattr(harness.store, "aposition", fail)
    monkeypatch.setattr(hub_module, "RETRY_DELAY", 0.0)
    task = asyncio.create_task(harness.subscriber())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()
    assert not harness.hub._streams
    assert errors == []


async def test_an_excluded_session_is_sent_the_other_messages_in_order() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    for exclude in ("", "sid", ""):
        await harness.publish(exclude=exclude)
        await asyncio.sleep(0)
    assert offsets(log) == [1, 3]


async def test_transient_messages_have_no_position() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    harness.hub.deliver(Transient("s", '"now"'))
    harness.hub.deliver(Transient("s", '"not you"', exclude="sid"))
    assert log == [{"identifier": "I", "message": "now"}]


async def test_transient_messages_follow_a_replay_and_their_number_is_bounded() -> None:
    harness = Harness()
    subscriber, log = await harness.subscriber()
    subscriber.suspend()
    for number in range(MAX_HELD + 10):
        harness.hub.deliver(Transient("s", str(number + 1)))
    await harness.publish()
    assert log == []
    await catch_up(harness, subscriber)
    assert log[0]["offset"] == 1
    assert [frame["message"] for frame in log[1:]] == list(range(1, MAX_HELD + 1))
    harness.hub.deliver(Transient("s", '"live"'))
    # The stream pauses for some milliseconds if sending took long.
    await until(lambda: log[-1]["message"] == "live")


@settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(3, 100))
def test_subscribers_are_sent_each_message_once_and_in_order_or_are_told_of_a_loss(seed: int, size: int) -> None:
    """Announcements get lost, repeated and reordered. The store trims and forgets messages. Subscribers catch up."""

    async def storm() -> None:
        rng = random.Random(seed)
        harness = Harness(HISTORY_SIZE=size)
        published: list[tuple[str, int]] = []
        announced: list[Published] = []
        subscribers = [await harness.subscriber() for _ in range(2)]
        for _ in range(80):
            step = rng.random()
            if step < 0.5:
                event = harness.append(str(len(published) + 1))
                published.append((event.epoch, event.entry.offset))
                announced.append(event)
                if rng.random() < 0.7:
                    harness.hub.deliver(event)
            elif step < 0.75:
                if announced:
                    harness.hub.deliver(rng.choice(announced))
            elif step < 0.9:
                await asyncio.sleep(0)
            elif step < 0.97:
                subscriber, log = rng.choice(subscribers)
                subscriber.suspend()
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                if not await catch_up(harness, subscriber):
                    log.append("lost")
            else:
                harness.store.forget("s")
        harness.hub.deliver(Advanced("s"))
        await harness.wait_until_written()
        for subscriber, log in subscribers:
            if not await catch_up(harness, subscriber):
                log.append("lost")
            received = [frame if frame == "lost" else (frame["epoch"], frame["offset"]) for frame in log]
            check(received, published)
            subscriber.leave(harness.hub)

    asyncio.run(storm())


def check(received: list[Any], published: list[tuple[str, int]]) -> None:
    """Check that messages are missing only where the subscriber was told of a loss."""
    previous = 0
    told_of_loss = True
    for item in received:
        if item == "lost":
            told_of_loss = True
            continue
        index = published.index(item)
        assert index == previous or (told_of_loss and index >= previous), (received, published)
        previous, told_of_loss = index + 1, False
    assert previous == len(published) or told_of_loss or not published, (received, published)


async def test_closing_a_hub_waits_for_its_tasks_and_closes_its_streams() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append("done")

    harness.hub.tasks.spawn(work())
    await harness.hub.aclose()
    assert done == ["done"]
    harness.store.append([("s", Message("1"))])
    await asyncio.sleep(0)
    assert log == []
    assert len(asyncio.all_tasks()) == 1, "a task other than this test is running"


async def test_closing_a_hub_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "CLOSE_TIMEOUT", 0.01)
    harness = Harness()
    task = harness.hub.tasks.spawn(asyncio.Event().wait())
    async with asyncio.timeout(30):
        await harness.hub.aclose()
    assert task.cancel()
