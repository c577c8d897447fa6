"""The announcements of all stream stores, and the polls of the model store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError

from reliable_cable.concurrency.threads import run_store
from reliable_cable.exceptions import StoreError
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.streams.base import Advanced, Message, Published, StreamEvent, StreamStore, Transient
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_polling import MAX_ROW_DELAY, SeenIds
from tests.stores.conftest import EVERY_STORE, MODEL_STORES, Clock, MakeStore, until

every_store = pytest.mark.parametrize("alias", EVERY_STORE, indirect=True)
model_stores = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)

Listen = Callable[..., Any]


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """Return a function that makes a listener, and returns it with a list to which its events are added."""
    listeners = []

    async def start(store: StreamStore, *streams: str) -> tuple[Any, list[StreamEvent]]:
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        listeners.append(listener)
        for stream in streams:
            await listener.subscribe(stream)
        return listener, heard

    yield start
    for listener in listeners:
        await listener.close()


def published(events: Sequence[StreamEvent]) -> list[StreamEvent]:
    """Return the events without `Advanced`, which a poll may add if it finds a message before it is announced."""
    return [event for event in events if not isinstance(event, Advanced)]


@every_store
class TestAnnouncing:
    async def test_messages_are_announced_in_order_with_their_positions(
        self, store: StreamStore, listen: Listen
    ) -> None:
        _, heard = await listen(store, "a")
        first, second = await store.aappend([("a", Message("1")), ("a", Message("2", exclude="sid"))])
        await store.aappend([("b", Message("3"))])
        await until(lambda: len(published(heard)) >= 2)
        assert published(heard) == [
            Published("a", first.epoch, Entry(1, "1")),
            Published("a", second.epoch, Entry(2, "2", "sid")),
        ]

    async def test_transient_messages_are_announced_too(self, store: StreamStore, listen: Listen) -> None:
        _, heard = await listen(store, "a")
        await store.apublish_transient("a", Message("1", exclude="sid"))
        await store.awhisper("a", Message("2", exclude="other"))
        await until(lambda: len(heard) >= 2)
        assert heard == [Transient("a", "1", "sid"), Transient("a", "2", "other", whisper=True)]

    async def test_a_repeated_broadcast_is_announced_once(self, store: StreamStore, listen: Listen) -> None:
        _, heard = await listen(store, "a")
        for _ in range(2):
            await store.aappend([("a", Message("1", idempotency_key="k"))])
        await store.awhisper("a", Message("end"))
        await until(lambda: Transient("a", "end", whisper=True) in heard)
        assert [type(event) for event in published(heard)] == [Published, Transient]

    async def test_forgetting_is_announced(self, store: StreamStore, listen: Listen) -> None:
        await store.aappend([("a", Message("1"))])
        _, heard = await listen(store, "a")
        await store.aforget("a")
        await until(lambda: Advanced("a") in heard)

    async def test_events_are_never_delivered_inside_a_call(self, make_store: MakeStore, listen: Listen) -> None:
        store = make_store(handler_threads=0)
        _, heard = await listen(store, "a")
        store.whisper("a", Message("1"))
        assert heard == []
        await until(lambda: heard)

    async def test_any_thread_may_broadcast_and_the_loop_delivers(self, store: StreamStore) -> None:
        where: list[int] = []
        listener = store.listen(lambda event: where.append(threading.get_ident()))
        await listener.subscribe("a")
        await asyncio.to_thread(store.whisper, "a", Message("1"))
        await until(lambda: where)
        await listener.close()
        assert where == [threading.get_ident()]

    async def test_each_listener_gets_events_of_its_own_streams(self, store: StreamStore, listen: Listen) -> None:
        _, a = await listen(store, "a")
        _, both = await listen(store, "a", "b")
        for stream in "ab":
            await store.awhisper(stream, Message(f'"{stream}"'))
        await until(lambda: len(both) == 2)
        assert a == [Transient("a", '"a"', whisper=True)]

    async def test_no_event_is_delivered_after_unsubscribe_and_close(self, store: StreamStore, listen: Listen) -> None:
        listener, heard = await listen(store, "a", "b", "c")
        store.whisper("a", Message("on its way"))
        await listener.unsubscribe("a")
        await listener.unsubscribe("never subscribed")
        store.whisper("a", Message("later"))
        store.whisper("b", Message("1"))
        await until(lambda: heard)
        await listener.close()
        store.whisper("c", Message("2"))
        await asyncio.sleep(0)
        assert heard == [Transient("b", "1", whisper=True)]

    async def test_an_error_in_one_delivery_does_not_affect_others(
        self, store: StreamStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        heard: list[StreamEvent] = []

        def deliver(event: StreamEvent) -> None:
            heard.append(event)
            raise ValueError("a bug")

        listener = store.listen(deliver)
        await listener.subscribe("a")
        for data in "12":
            store.whisper("a", Message(data))
        await until(lambda: len(heard) == 2)
        await listener.close()
        assert "a bug" in caplog.text


@pytest.mark.parametrize("alias", EVERY_STORE, indirect=True)
def test_a_closed_event_loop_does_not_break_a_broadcast(store: StreamStore) -> None:
    heard: list[StreamEvent] = []

    async def subscribe_and_vanish() -> None:
        await store.listen(heard.append).subscribe("a")
        await store.aclose()  # this closes no subscriptions

    asyncio.run(subscribe_and_vanish())
    store.whisper("a", Message("1"))
    assert [position.offset for position in store.append([("a", Message("2"))])] == [1]
    assert heard == []


@model_stores
class TestOtherProcesses:
    """A second store in the same database acts like the store of another process: the two share only the tables.

    Some tests forbid notifications (tests/stores/test_notify.py), because they need the events of polls, or because
    they choose when a poll is made. A listener that begins to receive notifications polls at once.
    """

    async def test_messages_of_other_processes_are_found(self, make_store: MakeStore, listen: Listen) -> None:
        here, there = make_store(notify=False), make_store(notify=False)
        await there.aappend([("a", Message("before"))])
        _, heard = await listen(here, "a", "b")
        await there.aappend([("a", Message("1"))])
        await until(lambda: heard)
        await there.aappend([("b", Message("2"))])
        await until(lambda: len(heard) == 2)
        assert heard == [Advanced("a"), Advanced("b")]

    async def test_a_new_epoch_is_found(self, make_store: MakeStore, listen: Listen) -> None:
        here, there = make_store(notify=False), make_store(notify=False)
        await there.aappend([("a", Message("1"))])
        _, heard = await listen(here, "a")
        await there.aforget("a")
        await there.aappend([("a", Message("1"))])
        await until(lambda: heard)
        assert set(heard) == {Advanced("a")}

    async def test_transient_messages_of_other_processes_are_found_once(
        self, make_store: MakeStore, listen: Listen
    ) -> None:
        here, there = make_store(), make_store()
        await there.apublish_transient("a", Message("too early"))
        _, heard = await listen(here, "a")
        await here.apublish_transient("a", Message("own"))
        await there.apublish_transient("a", Message("1", exclude="sid"))
        await there.apublish_transient("b", Message("not ours"))
        await until(lambda: len(heard) == 2)
        await there.apublish_transient("a", Message("2"))
        await until(lambda: len(heard) == 3)
        assert heard == [Transient("a", "own"), Transient("a", "1", "sid"), Transient("a", "2")]

    async def test_messages_of_this_process_are_not_announced_again(
        self, make_store: MakeStore, listen: Listen
    ) -> None:
        store = make_store(poll_interval=60, notify=False)
        listener, heard = await listen(store, "a")
        for number in range(3):
            await store.aappend([("a", Message(str(number)))])
        await until(lambda: len(heard) == 3)
        await listener._poll()
        await asyncio.sleep(0)
        assert [type(event) for event in heard] == [Published] * 3

    async def test_a_poll_during_which_local_messages_arrive_announces_nothing(
        self, make_store: MakeStore, listen: Listen
    ) -> None:
        store = make_store(poll_interval=60, notify=False)
        listener, heard = await listen(store, "a")
        polled = asyncio.Event()

        async def slow(*args: Any) -> Any:
            result = await run_store(*args)
            polled.set()
            await until(lambda: len(heard) == 2)
            return result

        await store.aappend([("a", Message("1"))])
        with mock.patch("reliable_cable.stores.streams.model_polling.run_store", slow):
            poll = asyncio.create_task(listener._poll())
            await polled.wait()
            await store.aappend([("a", Message("2"))])
            await poll
        await listener._poll()
        await asyncio.sleep(0)
        assert [type(event) for event in heard] == [Published] * 2

    async def test_polling_stops_with_the_last_subscription_and_starts_again(
        self, make_store: MakeStore, listen: Listen
    ) -> None:
        here, there = make_store(notify=False), make_store(notify=False)
        listener, heard = await listen(here, "a")
        await listener.unsubscribe("a")
        await until(lambda: listener._poller is None)
        await there.apublish_transient("a", Message("unheard"))
        await listener.subscribe("a")
        await there.aappend([("a", Message("1"))])
        await until(lambda: heard)
        assert heard == [Advanced("a")]

    async def test_an_outage_is_logged_once_and_survived(
        self, make_store: MakeStore, listen: Listen, caplog: pytest.LogCaptureFixture
    ) -> None:
        here, there = make_store(notify=False), make_store(notify=False)
        _, heard = await listen(here, "a")
        polls = mock.Mock(side_effect=OperationalError("database is down"))
        with mock.patch.object(ModelStreamStore, "_tails", polls):
            await until(lambda: polls.call_count >= 3)
        await there.aappend([("a", Message("1"))])
        await until(lambda: heard)
        assert heard == [Advanced("a")]
        assert caplog.text.count("database is down") == 1

    async def test_a_failed_subscription_raises_an_error(self, make_store: MakeStore, listen: Listen) -> None:
        store = make_store()
        listener, heard = await listen(store)
        outage = mock.Mock(side_effect=OperationalError("database is down"))
        with (
            mock.patch.object(ModelStreamStore, "_tails", outage),
            pytest.raises(StoreError, match="database is down"),
        ):
            await listener.subscribe("a")
        store.whisper("a", Message("1"))
        await listener.subscribe("a")
        store.whisper("a", Message("2"))
        await until(lambda: heard)
        assert heard == [Transient("a", "2", whisper=True)]

    async def test_a_listener_prunes_periodically(self, make_store: MakeStore, clock: Clock, listen: Listen) -> None:
        store = make_store()
        await store.aappend([("a", Message("1"))])
        clock.advance(1000)
        with (
            mock.patch("reliable_cable.stores.streams.model_polling.PRUNE_INTERVAL", 0),
            mock.patch.object(store, "prune", wraps=store.prune) as prune,
        ):
            await listen(store, "b")
            await until(lambda: prune.call_count >= 2)
        assert await store._run_write(store.prune) == 0


def rows(*ids: int, since: float = 0.0) -> list[tuple[int, float]]:
    """Return rows with these ids, and with times in the order of the ids."""
    return [(id_, since + id_) for id_ in ids]


class TestSeenIds:
    def test_rows_of_the_first_call_are_not_new(self) -> None:
        seen = SeenIds(Clock())
        assert seen.add(rows(1, 2)) == []
        assert seen.add(rows(1, 2, 3)) == rows(3)

    def test_rows_that_become_visible_late_are_found(self) -> None:
        seen = SeenIds(Clock())
        seen.add([])
        assert seen.add(rows(1, 5)) == rows(1, 5)
        assert seen.add(rows(1, 3, 5)) == rows(3)

    def test_old_rows_are_left_out_of_queries(self) -> None:
        clock = Clock()
        seen = SeenIds(clock)
        seen.add(rows(1, 5))
        clock.advance(MAX_ROW_DELAY / 2)
        seen.add(rows(1, 5, 7))
        assert seen.horizon == 0
        clock.advance(MAX_ROW_DELAY / 2)
        assert seen.add(rows(1, 5, 7, 8)) == rows(8)
        assert (seen.horizon, seen.newest) == (5, 8)
        assert seen.add(rows(7, 8)) == []

    def test_rows_whose_ids_were_given_before_are_found(self) -> None:
        clock = Clock()
        seen = SeenIds(clock)
        seen.add(rows(5, 7))
        clock.advance(MAX_ROW_DELAY)
        seen.add(rows(5, 7, 8))
        assert seen.horizon == 7
        # A backup without rows was restored, and the next ids are 2, 3 and so on.
        assert seen.add(rows(2, since=100)) == rows(2, since=100)
        assert seen.horizon == 1
        clock.advance(MAX_ROW_DELAY)
        assert seen.add(rows(2, 3, 8, since=100)) == rows(3, 8, since=100)
        assert seen.horizon == 2
