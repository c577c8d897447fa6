"""Wake-ups over a shared channel layer, after which messages of other processes are found at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
from django.test import override_settings

from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.streams.base import Advanced, Message, StreamEvent, Transient
from reliable_cable.stores.streams.model_polling import PollingListener
from reliable_cable.stores.streams.wakeup import GROUP, MAX_STREAMS
from tests.stores.conftest import MODEL_STORES, SQLITE, MakeStore, until, wait_until
from tests.support.layer import CrossLoopLayer

LAYERS = {"default": {"BACKEND": "tests.support.layer.CrossLoopLayer"}}
IN_MEMORY = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

sqlite = pytest.mark.parametrize("alias", [SQLITE], indirect=True)


@pytest.fixture(autouse=True)
def layer() -> Iterator[None]:
    CrossLoopLayer.reset()
    with override_settings(CHANNEL_LAYERS=LAYERS):
        yield


def members() -> int:
    return len(CrossLoopLayer.groups.get(GROUP, {}))


def wakeup_threads() -> int:
    return sum(thread.name == "cable-wakeups" for thread in threading.enumerate())


@pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
async def test_messages_of_other_processes_are_found_at_once(make_store: MakeStore) -> None:
    here, there = (make_store(poll_interval=60, notify=False) for _ in range(2))
    heard: list[StreamEvent] = []
    listener = here.listen(heard.append)
    await listener.subscribe("a")
    await until(members)
    await there.aappend([("a", Message("1"))])
    await until(lambda: heard)
    await there.apublish_transient("a", Message("2"))
    await until(lambda: len(heard) == 2)
    await listener.close()
    assert heard == [Advanced("a"), Transient("a", "2")]
    assert members() == 0


@sqlite
async def test_messages_before_the_first_wake_up_are_found_at_once(make_store: MakeStore) -> None:
    here, there = make_store(poll_interval=60), make_store(poll_interval=60)
    join = CrossLoopLayer.group_add
    subscribed = asyncio.Event()

    async def join_late(layer: CrossLoopLayer, group: str, channel: str) -> None:
        await subscribed.wait()
        await there.aappend([("a", Message("1"))])
        await until(lambda: CrossLoopLayer.sent)
        await join(layer, group, channel)

    heard: list[StreamEvent] = []
    with mock.patch.object(CrossLoopLayer, "group_add", join_late):
        listener = here.listen(heard.append)
        await listener.subscribe("a")
        subscribed.set()
        await until(lambda: heard)
    await listener.close()
    assert heard == [Advanced("a")]


@sqlite
async def test_messages_during_a_subscription_are_found_at_once(make_store: MakeStore) -> None:
    here, there = make_store(poll_interval=60), make_store(poll_interval=60)
    heard: list[StreamEvent] = []
    listener = here.listen(heard.append)
    await listener.subscribe("a")
    await until(members)
    tails = here.tails

    def read_slowly(streams: Sequence[str]) -> dict[str, StreamPosition]:
        found: dict[str, StreamPosition] = tails(streams)
        # While `subscribe` reads the position, a message is stored, and a poll that does not include "b" is made.
        others = polled.call_count
        there.append([("b", Message("1"))])
        wait_until(lambda: polled.call_count > others)
        return found

    with (
        mock.patch.object(here, "poll", side_effect=here.poll) as polled,
        mock.patch.object(here, "tails", side_effect=read_slowly),
    ):
        await listener.subscribe("b")
        await until(lambda: heard)
    await listener.close()
    assert heard == [Advanced("b")]


@sqlite
async def test_wake_ups_for_unknown_streams_are_ignored(make_store: MakeStore) -> None:
    here, there = make_store(poll_interval=60), make_store(poll_interval=60)
    listener = here.listen(lambda event: None)
    assert isinstance(listener, PollingListener)
    await listener.subscribe("a")
    await until(members)
    with mock.patch.object(listener._woken, "set", wraps=listener._woken.set) as woken:
        await here.aappend([("a", Message("own"))])
        await there.aappend([("b", Message("1"))])
        await until(lambda: len(CrossLoopLayer.sent) == 2)
        await there.aappend([("a", Message("2"))])
        await until(lambda: woken.called)
        await listener.close()
    assert woken.call_count == 1


@sqlite
def test_one_thread_with_one_event_loop_sends_for_all_threads(make_store: MakeStore) -> None:
    store = make_store()
    for number in range(3):
        thread = threading.Thread(target=store._waker.wake, args=(store.origin, [f"s{number}"]))
        thread.start()
        thread.join()
    wait_until(lambda: {name for message in CrossLoopLayer.sent for name in message["streams"]} == {"s0", "s1", "s2"})
    assert len(CrossLoopLayer.senders) == 1
    assert wakeup_threads() == 1
    store.close()
    assert wakeup_threads() == 0


@sqlite
def test_wake_ups_are_merged_and_bounded(make_store: MakeStore) -> None:
    store = make_store()
    names = [f"s{number:04}" for number in range(MAX_STREAMS + 1)]
    store._waker.wake(store.origin, names * 2)
    wait_until(lambda: len(CrossLoopLayer.sent) >= 2)
    assert [len(message["streams"]) for message in CrossLoopLayer.sent] == [MAX_STREAMS, 1]
    assert {message["type"] for message in CrossLoopLayer.sent} == {"cable.wake"}


@sqlite
def test_a_layer_that_is_down_breaks_no_broadcast_and_is_logged_once(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store()
    CrossLoopLayer.broken = True
    for _ in range(2):
        assert store.append([("a", Message("1"))])
        wait_until(lambda: "could not be woken" in caplog.text)
    CrossLoopLayer.broken = False
    store.append([("a", Message("2"))])
    wait_until(lambda: CrossLoopLayer.sent)
    assert caplog.text.count("ConnectionError: the layer is down") == 1


@sqlite
async def test_wake_ups_are_received_again_after_an_error(make_store: MakeStore) -> None:
    store = make_store()
    CrossLoopLayer.broken = True
    with mock.patch("reliable_cable.stores.streams.wakeup.RETRY_INTERVAL", 0.01):
        listener = store.listen(lambda event: None)
        await listener.subscribe("a")
        CrossLoopLayer.broken = False
        await until(members)
        await listener.close()


@sqlite
async def test_memberships_are_renewed_before_they_expire(make_store: MakeStore) -> None:
    store = make_store(poll_interval=60)
    with (
        mock.patch("reliable_cable.stores.streams.wakeup.RENEW_INTERVAL", 0.01),
        mock.patch("reliable_cable.stores.streams.wakeup.RETRY_INTERVAL", 60),
    ):
        listener = store.listen(lambda event: None)
        await listener.subscribe("a")
        await until(members)
        CrossLoopLayer.groups.clear()
        await until(members)
        await listener.close()


@pytest.mark.parametrize("layers", [{}, IN_MEMORY])
@sqlite
def test_no_thread_is_started_without_a_shared_layer(make_store: MakeStore, layers: dict[str, Any]) -> None:
    store = make_store()
    with override_settings(CHANNEL_LAYERS=layers):
        store.append([("a", Message("1"))])
        assert store._waker._senders == {}
