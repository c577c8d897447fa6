"""However unreliable the announcements: live readers get the stream in order, none twice, none skipped, or told."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliable_cable.connection.outbox import Outbox
from reliable_cable.exceptions import StoreError
from reliable_cable.hub import hub as hub_module
from reliable_cable.hub.subscriber import MAX_HELD, SubscriberGroup
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.stores.streams.base import Advanced, Message, Published, Transient
from tests.support.subscriber import LoneSubscriber

from .hubs import Harness, catch_up, offsets


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make repairs read again without a delay, and the store trim without a delay."""
    monkeypatch.setattr("reliable_cable.hub.repair.IDLE_DELAYS", (0.0,) * 5)
    monkeypatch.setattr("reliable_cable.stores.streams.memory.YOUNG_TIME", 0.0)


async def test_messages_go_out_at_once_encoded_once_for_each_identifier(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    _, one = await harness.subscriber("A")
    _, two = await harness.subscriber("A")
    _, other = await harness.subscriber("B", "s#1")
    _, base = await harness.subscriber("A", None)
    calls: list[int] = []
    encode = SubscriberGroup.encode

    def counted(group: SubscriberGroup, epoch: str, offset: int, data: str) -> str:
        calls.append(offset)
        return encode(group, epoch, offset, data)

    monkeypatch.setattr(SubscriberGroup, "encode", counted)
    event = await harness.publish('{"x":1}')
    frame = {"identifier": "A", "message": {"x": 1}, "stream_id": "s", "epoch": event.epoch, "offset": 1}
    assert one == two == [frame]
    assert other == [{**frame, "identifier": "B", "stream_id": "s#1"}]
    assert base == [{"identifier": "A", "message": {"x": 1}}]
    assert len(calls) == 3


async def test_a_repeat_is_dropped_and_a_gap_is_filled_from_the_store() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    events = [harness.append() for _ in range(4)]
    harness.hub.deliver(events[0])
    harness.hub.deliver(events[0])
    harness.hub.deliver(events[3])
    await harness.settled()
    harness.hub.deliver(events[1])
    assert offsets(log) == [1, 2, 3, 4]


async def test_a_lost_announcement_is_found_by_a_hint() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    harness.append()
    harness.hub.deliver(Advanced("s"))
    await harness.settled()
    assert offsets(log) == [1]


async def test_trimmed_messages_are_told_of_and_the_rest_follows() -> None:
    harness = Harness(HISTORY_SIZE=2)
    _, log = await harness.subscriber()
    events = [harness.append() for _ in range(5)]
    harness.hub.deliver(events[4])
    await harness.settled()
    assert offsets(log) == ["lost", 4, 5]


async def test_a_burst_that_trims_what_is_being_read_is_sent_from_what_was_announced() -> None:
    harness = Harness(HISTORY_SIZE=2)
    _, log = await harness.subscriber()
    for event in [harness.append() for _ in range(20)]:
        harness.hub.deliver(event)
    await harness.settled()
    assert offsets(log) == list(range(1, 21)), "also of a stream that had no epoch"
    events = [harness.append() for _ in range(10)]
    harness.hub.deliver(events[1])
    harness.hub.deliver(events[0])
    for event in events[2:]:
        harness.hub.deliver(event)
    await harness.settled()
    assert offsets(log) == list(range(1, 31))


async def test_what_was_announced_of_another_epoch_is_not_sent() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    late = harness.append()
    harness.store.forget("s")
    harness.hub.deliver(late)
    harness.hub.deliver(harness.append('"new"'))
    await harness.settled()
    assert [frame["message"] for frame in log] == ["new"]


async def test_a_new_epoch_is_told_of_and_starts_over() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    for _ in range(3):
        await harness.publish()
    harness.store.forget("s")
    harness.hub.deliver(harness.append())
    await harness.settled()
    assert offsets(log) == [1, 2, 3, "lost", 1]


async def test_a_store_that_fails_delays_but_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliable_cable.hub.repair.RETRY_DELAY", 0.001)
    harness = Harness()
    _, log = await harness.subscriber()
    events = [harness.append() for _ in range(3)]
    harness.store.broken = True
    harness.hub.deliver(events[2])
    await asyncio.sleep(0.01)
    assert log == []
    harness.store.broken = False
    await harness.settled()
    assert offsets(log) == [1, 2, 3]


async def test_a_late_repeat_from_a_forgotten_epoch_is_not_taken_for_a_first_message() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    old = harness.append()
    for event in (old, Advanced("s"), old):
        if isinstance(event, Advanced):
            harness.store.forget("s")
        harness.hub.deliver(event)
        await harness.settled()
    assert offsets(log) == [1, "lost"]


async def test_the_opening_of_a_stream_does_not_wait_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert offsets(log) == [1], "the next subscriber opens it anew"


async def test_excluded_sessions_are_left_out_and_stay_in_order() -> None:
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


async def test_transient_messages_wait_for_the_end_of_a_replay_within_bounds() -> None:
    harness = Harness()
    reader, log = await harness.subscriber()
    reader.suspend()
    for number in range(MAX_HELD + 10):
        harness.hub.deliver(Transient("s", str(number + 1)))
    await harness.publish()
    assert log == []
    await catch_up(harness, reader)
    assert log[0]["offset"] == 1
    assert [frame["message"] for frame in log[1:]] == list(range(1, MAX_HELD + 1))
    harness.hub.deliver(Transient("s", '"live"'))
    assert log[-1]["message"] == "live"


async def test_a_stream_without_readers_is_left() -> None:
    harness = Harness()
    reader, log = await harness.subscriber()
    reader.leave(harness.hub)
    await harness.publish()
    assert log == []
    again, log = await harness.subscriber()
    await harness.publish()
    assert offsets(log) == [2]
    again.leave(harness.hub)


async def behind(harness: Harness, outbox: Outbox, sids: tuple[str, ...] = ()) -> LoneSubscriber:
    """Return a reader that stands before the stream's first message."""
    reader = LoneSubscriber(outbox, "I", "s", sids, lambda: None)
    await reader.join(harness.hub, "s")
    reader.cursor = StreamPosition(reader.cursor.epoch, 0)
    return reader


async def test_a_history_is_one_write_and_leaves_out_what_is_not_for_its_reader() -> None:
    harness = Harness()
    for number in range(6):
        harness.append(str(number), exclude="mine" if number in (0, 3, 5) else "")
    writes: list[bytes] = []

    async def send(message: dict[str, Any]) -> None: ...

    outbox = Outbox(send, limit=10**6, overflow=lambda: None, write=writes.append)
    reader = await behind(harness, outbox, ("other", "mine"))
    assert await catch_up(harness, reader)
    assert len(writes) == 1
    assert [writes[0].count(b'"offset":%d}' % offset) for offset in range(1, 7)] == [0, 1, 1, 0, 1, 0]
    assert reader.cursor.offset == 6


async def test_those_who_come_back_together_cost_one_read_and_one_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    for _ in range(5):
        harness.append()
    calls: list[int] = []
    encode, read = SubscriberGroup.encode, harness.store.aread

    def counted(group: SubscriberGroup, epoch: str, offset: int, data: str) -> Any:
        calls.append(offset)
        return encode(group, epoch, offset, data)

    async def noted(stream: str, **options: Any) -> StreamPage:
        if options["limit"]:
            calls.append(-1)
        return await read(stream, **options)

    monkeypatch.setattr(SubscriberGroup, "encode", counted)
    monkeypatch.setattr(harness.store, "aread", noted)
    logs: list[list[bytes]] = [[] for _ in range(20)]

    async def send(message: dict[str, Any]) -> None: ...

    readers = [
        await behind(harness, Outbox(send, limit=10**6, overflow=lambda: None, write=log.append)) for log in logs
    ]
    assert all(await asyncio.gather(*(catch_up(harness, reader) for reader in readers)))
    assert sorted(calls) == [-1, 1, 2, 3, 4, 5]
    assert all(log == logs[0] for log in logs)


async def test_a_long_history_is_written_as_the_socket_takes_it() -> None:
    harness = Harness(MAX_PENDING_SIZE=1024)
    for _ in range(50):
        harness.append('"' + "x" * 60 + '"')
    taken: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        taken.append(json.loads(message["text"])["offset"])

    slow: list[str] = []
    outbox = Outbox(send, limit=harness.settings.max_pending_size, overflow=lambda: slow.append("too slow"))
    assert await catch_up(harness, await behind(harness, outbox))
    assert (taken, slow) == (list(range(1, 51)), [])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(3, 100))
def test_storms(seed: int, size: int) -> None:
    """Announcements are lost, repeated and reordered, the store trims and forgets, readers fall behind and return."""

    async def storm() -> None:
        rng = random.Random(seed)
        harness = Harness(HISTORY_SIZE=size)
        truth: list[tuple[str, int]] = []
        announced: list[Published] = []
        readers = [await harness.subscriber() for _ in range(2)]
        for _ in range(80):
            step = rng.random()
            if step < 0.5:
                event = harness.append(str(len(truth) + 1))
                truth.append((event.epoch, event.entry.offset))
                announced.append(event)
                if rng.random() < 0.7:
                    harness.hub.deliver(event)
            elif step < 0.75:
                if announced:
                    harness.hub.deliver(rng.choice(announced))
            elif step < 0.9:
                await asyncio.sleep(0)
            elif step < 0.97:
                reader, log = rng.choice(readers)
                reader.suspend()
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                if not await catch_up(harness, reader):
                    log.append("lost")
            else:
                harness.store.forget("s")
        harness.hub.deliver(Advanced("s"))
        await harness.settled()
        for reader, log in readers:
            if not await catch_up(harness, reader):
                log.append("lost")
            got = [frame if frame == "lost" else (frame["epoch"], frame["offset"]) for frame in log]
            check(got, truth)
            reader.leave(harness.hub)

    asyncio.run(storm())


def check(got: list[Any], truth: list[tuple[str, int]]) -> None:
    """Between two signals of a loss, what was got is a gapless part of the truth; at the end it is the end."""
    previous = 0
    told = True
    for item in got:
        if item == "lost":
            told = True
            continue
        index = truth.index(item)
        assert index == previous or (told and index >= previous), (got, truth)
        previous, told = index + 1, False
    assert previous == len(truth) or told or not truth, (got, truth)


async def test_a_hub_that_is_closed_waits_for_what_connections_began_and_leaves_its_streams() -> None:
    harness = Harness()
    _, log = await harness.subscriber()
    done: list[str] = []

    async def begun() -> None:
        await asyncio.sleep(0)
        done.append("done")

    harness.hub.tasks.spawn(begun())
    await harness.hub.aclose()
    assert done == ["done"]
    harness.store.append([("s", Message("1"))])
    await asyncio.sleep(0)
    assert log == []
    assert len(asyncio.all_tasks()) == 1, "only this test"


async def test_a_hub_that_is_closed_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "CLOSE_TIMEOUT", 0.01)
    harness = Harness()
    task = harness.hub.tasks.spawn(asyncio.Event().wait())
    async with asyncio.timeout(5):
        await harness.hub.aclose()
    assert task.cancel()
