"""A reader of server-sent events has the correct position after broadcasts that were left out or dropped."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from django.test import override_settings

from reliable_cable import Channel
from reliable_cable.channel import registry
from reliable_cable.connection.subscription import Subscription
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.streams.base import Message
from tests.unit.events import SETTINGS, Reader, broadcast, only_connection
from tests.unit.wire import until


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    with override_settings(RELIABLE_CABLE=SETTINGS):
        yield


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("streams", [["a"], ["a", "b"]])
async def test_a_broadcast_that_excludes_a_reader_does_not_arrive_after_a_reconnect(
    streams: list[str], *, header: bool, raw: bool
) -> None:
    query = urlencode([*(("stream", each) for each in streams), *([("raw", "1")] if raw else [])])
    async with Reader(query) as reader:
        await reader.until("id: ", len(streams))
        connection = only_connection()
        await get_engine().streams.aappend([("a", Message('"its own message"', exclude=connection.sid))])
        await until(lambda: re.match(r"\*?1/", reader.read()[1]))
        events, last_id = reader.read()
        assert not [event for event in events if event.type == "message"], "an id alone dispatches no event"
    again = query if header else f"{query}&{urlencode({'last_event_id': last_id})}"
    async with Reader(again, last_id if header else "") as reader:
        await reader.until("id: ", 2 * len(streams))
        await broadcast("a", "next")
        await reader.until("data: next")
        assert "its own message" not in reader.body.decode()


async def test_a_broadcast_that_excludes_a_reader_moves_its_position_while_it_catches_up() -> None:
    async with Reader("stream=a") as reader:
        await reader.until("event: confirm_subscription")
        await broadcast("a", "first")
        await reader.until("data: first")
        connection = only_connection()
        async with connection.outbox.reading:
            [subscription] = connection.subscriptions.values()
            assert isinstance(subscription, Subscription)
            for subscribed in subscription.streams.values():
                subscribed.fall_behind(subscribed.stream.position)
            excluding = [("a", Message('"its own message"', exclude=connection.sid)), ("a", Message('"last"'))]
            await get_engine().streams.aappend(excluding)
        await reader.until("data: last")
        text = reader.body.decode()
        assert "its own message" not in text
        assert re.search(r"\n\ndata: last\nid: 3/\w+/a\n", text)


async def test_a_catch_up_that_ends_with_an_excluding_broadcast_moves_the_position() -> None:
    async with Reader("stream=a&stream=b") as reader:
        await reader.until("event: confirm_subscription", 2)
        connection = only_connection()
        async with connection.outbox.reading:
            for subscription in connection.subscriptions.values():
                assert isinstance(subscription, Subscription)
                for subscribed in subscription.streams.values():
                    subscribed.fall_behind(subscribed.stream.position)
            excluding = [("a", Message('"first"')), ("a", Message('"its own message"', exclude=connection.sid))]
            await get_engine().streams.aappend(excluding)
        await until(lambda: reader.read()[1].startswith("*2/"))
        assert "its own message" not in reader.body.decode()


async def test_the_id_of_the_next_event_does_not_count_an_event_that_was_dropped() -> None:
    """A slow reader is later sent the dropped event from the store, unless its connection breaks first."""
    with override_settings(RELIABLE_CABLE={**SETTINGS, "MAX_PENDING_SIZE": 100_000}):
        async with Reader("stream=a&stream=b") as reader:
            await reader.until("event: confirm_subscription", 2)
            reader.accepts.clear()
            for stream, size in (("a", 1), ("a", 30_000), ("a", 30_000), ("b", 1)):
                await broadcast(stream, "x" * size)
            reader.accepts.set()
            await reader.until("id: *3/")
            ids = re.findall(r"id: \*([0-9]+)/[^,]*,([0-9]+)/", reader.body.decode())
        assert ids[-4:] == [("1", "0"), ("2", "0"), ("2", "1"), ("3", "1")]


async def test_a_slow_channel_does_not_delay_the_messages_of_the_subscriptions_before_it() -> None:
    """A reader whose connection breaks meanwhile also keeps its position in the stream of the slow channel."""
    released = asyncio.Event()
    released.set()

    class SlowChannel(Channel):
        async def subscribed(self) -> None:
            await released.wait()
            self.stream_from("slow")

    query = "stream=a&channel=SlowChannel"
    try:
        async with Reader(query) as reader:
            await reader.until("event: confirm_subscription", 2)
            last_id = reader.read()[1]
        await broadcast("slow", "missed")
        released.clear()
        async with Reader(query, last_id) as reader:
            await reader.until("event: confirm_history")
            await broadcast("a", "early")
            await reader.until("data: early")
            last_id = reader.read()[1]
            assert reader.status == 200
            released.set()
        async with Reader(query, last_id) as reader:
            await reader.until("event: confirm_history", 2)
            assert [event.data for event in reader.read()[0] if event.type == "message"] == ["missed"]
    finally:
        del registry["SlowChannel"]
