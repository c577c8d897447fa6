"""The announcements of all presence stores, and the memory use of `MemoryPresenceStore`."""

from __future__ import annotations

import asyncio
import threading

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.stores.presence.base import PresenceEvent, PresenceStore
from reliable_cable.stores.presence.memory import MemoryPresenceStore

from .conftest import PRESENCE_STORES, Clock
from .presence import KEPT, TTL, Recorder, elapse, joined, left, listen


@pytest.fixture
def store(presence_store: PresenceStore) -> PresenceStore:
    return presence_store


@pytest.mark.parametrize("alias", PRESENCE_STORES, indirect=True)
class TestListening:
    async def test_a_listener_is_never_called_from_inside_another_call(self, store: PresenceStore) -> None:
        inside: list[bool] = []
        calling = False
        recorder = await listen(store, "s", deliver=lambda event: inside.append(calling))
        calling = True
        store.join("s", "phone", "1")
        calling = False
        await recorder.events()
        assert inside == [False]
        await recorder.listener.close()

    async def test_events_from_other_threads_are_delivered_on_the_event_loop(self, store: PresenceStore) -> None:
        threads: list[threading.Thread] = []
        recorder = await listen(store, "s", deliver=lambda event: threads.append(threading.current_thread()))
        await asyncio.to_thread(store.join, "s", "phone", "1")
        await recorder.events()
        assert threads == [threading.current_thread()]
        await recorder.listener.close()

    async def test_each_listener_gets_its_own_copy_of_an_event(self, store: PresenceStore) -> None:
        heard: list[PresenceEvent] = []

        def spoil(event: PresenceEvent) -> None:
            heard.append(event)
            event.info.append("spoilt")

        ears = [await listen(store, "s", deliver=spoil) for _ in range(2)]
        caused = store.join("s", "phone", "1", [])
        for recorder in ears:
            await recorder.events()
        assert [event.info for event in heard] == [["spoilt"], ["spoilt"]]
        assert caused == [joined("1", [])]
        for recorder in ears:
            await recorder.listener.close()

    async def test_only_events_of_subscribed_streams_are_delivered(self, store: PresenceStore) -> None:
        recorder = await listen(store, "s")
        store.join("t", "phone", "1")
        store.join("s", "phone", "1")
        assert await recorder.events() == [joined("1")]
        await recorder.listener.close()

    async def test_nothing_is_delivered_after_unsubscribe_or_close(
        self, store: PresenceStore, recorder: Recorder
    ) -> None:
        store.join("s", "phone", "1")
        await recorder.listener.unsubscribe("s")
        store.leave("s", "phone")
        assert left("1") not in await recorder.events()
        await recorder.listener.unsubscribe("s")
        await recorder.listener.subscribe("s")
        store.join("s", "phone", "2")
        assert await recorder.events() == [joined("2")]

    async def test_a_closed_event_loop_does_not_break_other_listeners(
        self, store: PresenceStore, recorder: Recorder
    ) -> None:
        def listen_and_die() -> None:
            async def start() -> None:
                await store.listen(lambda event: None).subscribe("s")

            asyncio.run(start())

        await asyncio.to_thread(listen_and_die)
        store.join("s", "phone", "1")
        store.leave("s", "phone")
        assert await recorder.events() == [joined("1"), left("1")]

    async def test_many_threads_at_once_keep_joins_and_leaves_in_order(
        self, store: PresenceStore, recorder: Recorder
    ) -> None:
        caused: list[PresenceEvent] = []

        def come_and_go(session: str) -> None:
            for _ in range(50):
                caused.extend(store.join("s", session, "1"))
                caused.extend(store.leave("s", session))

        await asyncio.gather(*(asyncio.to_thread(come_and_go, f"phone{number}") for number in range(4)))
        events = [event.type for event in await recorder.events()]
        assert events == ["join", "leave"] * (len(events) // 2)
        assert events
        assert len(caused) == len(events)
        assert store.info("s").total == 0


class TestMemoryStore:
    def test_each_store_has_its_own_members(self, clock: Clock) -> None:
        names = {MemoryPresenceStore(CableSettings(), clock=clock).info("s").incarnation for _ in range(3)}
        assert len(names) == 3
        assert "" not in names

    def test_forgotten_members_use_no_memory(self, clock: Clock) -> None:
        store = MemoryPresenceStore(CableSettings(presence_ttl=TTL, sessions_ttl=KEPT), clock=clock)
        for number in range(100):
            store.join(f"s{number}", "phone", "1")
            store.leave(f"s{number}", "phone")
            store.join(f"s{number}", "phone", "1")
        elapse(store, clock)
        clock.advance(store.memory + 1)
        store.expire()
        assert (store._streams, len(store._sessions), len(store._tombstones)) == ({}, 0, 0)
