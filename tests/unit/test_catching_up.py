"""Entries that several subscribers have missed are read once, encoded once, and written at the pace of each socket."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from reliable_cable.connection.account import Account
from reliable_cable.connection.outbox import Outbox
from reliable_cable.hub.subscriber import SubscriberGroup
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage
from tests.support.subscriber import LoneSubscriber

from .hubs import Harness, catch_up


async def subscriber_at_start(harness: Harness, outbox: Outbox, sids: tuple[str, ...] = ()) -> LoneSubscriber:
    """Return a subscriber whose cursor is before the first message of the stream."""
    subscriber = LoneSubscriber(outbox, "I", "s", sids, lambda: None)
    await subscriber.join(harness.hub, "s")
    subscriber.cursor = StreamPosition(subscriber.cursor.epoch, 0)
    return subscriber


async def test_a_history_is_one_write_without_the_messages_that_exclude_the_subscriber() -> None:
    harness = Harness()
    for number in range(6):
        harness.append(str(number), exclude="mine" if number in (0, 3, 5) else "")
    writes: list[bytes] = []

    async def send(message: dict[str, Any]) -> None: ...

    outbox = Outbox(send, account=Account(10**6), overflow=lambda: None, write=writes.append)
    subscriber = await subscriber_at_start(harness, outbox, ("other", "mine"))
    assert await catch_up(harness, subscriber)
    assert len(writes) == 1
    assert [writes[0].count(b'"offset":%d}' % offset) for offset in range(1, 7)] == [0, 1, 1, 0, 1, 0]
    assert subscriber.cursor.offset == 6


async def test_subscribers_that_reconnect_together_share_one_read_and_one_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness()
    for _ in range(5):
        harness.append()
    calls: list[int] = []
    encode, read = SubscriberGroup.encode, harness.store.aread

    def counting(group: SubscriberGroup, epoch: str, offset: int, data: str) -> Any:
        calls.append(offset)
        return encode(group, epoch, offset, data)

    async def counting_read(stream: str, **options: Any) -> StreamPage:
        if options["limit"]:
            calls.append(-1)  # stands for a read
        return await read(stream, **options)

    monkeypatch.setattr(SubscriberGroup, "encode", counting)
    monkeypatch.setattr(harness.store, "aread", counting_read)
    logs: list[list[bytes]] = [[] for _ in range(20)]

    async def send(message: dict[str, Any]) -> None: ...

    subscribers = [
        await subscriber_at_start(
            harness, Outbox(send, account=Account(10**6), overflow=lambda: None, write=log.append)
        )
        for log in logs
    ]
    assert all(await asyncio.gather(*(catch_up(harness, subscriber) for subscriber in subscribers)))
    assert sorted(calls) == [-1, 1, 2, 3, 4, 5]
    assert all(log == logs[0] for log in logs)


async def test_subscribers_that_share_a_block_receive_what_they_have_missed_and_no_message_that_excludes_them() -> None:
    harness = Harness()
    for number in range(6):
        harness.append(str(number), exclude="excluded" if number == 4 else "")

    async def send(message: dict[str, Any]) -> None: ...

    async def catch_up_from(start: int, sid: str = "sid") -> list[int]:
        written: list[bytes] = []
        outbox = Outbox(send, account=Account(10**6), overflow=lambda: None, write=written.append)
        subscriber = await subscriber_at_start(harness, outbox, (sid,))
        subscriber.cursor = StreamPosition(subscriber.stream.position.epoch, start)
        assert await catch_up(harness, subscriber)
        assert (subscriber.at, len(written)) == (subscriber.stream.serial, 1)
        return [int(offset) for offset in re.findall(rb'"offset":(\d+)', written[0])]

    for start in (0, 0, 0, 3, 3, 0):
        assert await catch_up_from(start) == list(range(start + 1, 7))
    assert await catch_up_from(0, "excluded") == [1, 2, 3, 4, 6]
    assert await catch_up_from(5, "excluded") == [6]


async def test_a_subscriber_whose_socket_fails_during_a_shared_block_is_closed_alone() -> None:
    harness = Harness()
    harness.append()
    harness.append()

    async def send(message: dict[str, Any]) -> None: ...

    written: list[bytes] = []

    def fail(data: bytes) -> None:
        raise OSError("closed")

    for write in (written.append, written.append, fail, written.append):
        outbox = Outbox(send, account=Account(10**6), overflow=lambda: None, write=write)
        await catch_up(harness, await subscriber_at_start(harness, outbox))
        assert outbox.closed is (write is fail)
    assert len(written) == 3
    assert len(set(written)) == 1


async def test_a_long_history_is_written_at_the_pace_of_the_socket() -> None:
    harness = Harness(MAX_PENDING_SIZE=1024)
    for _ in range(50):
        harness.append('"' + "x" * 60 + '"')
    sent: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        sent.append(json.loads(message["text"])["offset"])

    overflows: list[str] = []
    outbox = Outbox(
        send, account=Account(harness.settings.max_pending_size), overflow=lambda: overflows.append("too slow")
    )
    assert await catch_up(harness, await subscriber_at_start(harness, outbox))
    assert (sent, overflows) == (list(range(1, 51)), [])
