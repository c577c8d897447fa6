"""The member lists of all clients become correct, even if events are lost, are late, or arrive during reads."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError
from reliable_cable.hub import rosters
from reliable_cable.hub.rosters import Rosters
from reliable_cable.stores.presence.base import Member, PresenceEvent, PresenceInfo, PresenceMissed
from reliable_cable.stores.presence.memory import MemoryPresenceListener, MemoryPresenceStore
from tests.stores.conftest import until
from tests.support.examples import examples

TTL = 0.02


class ScriptedStore(MemoryPresenceStore):
    """Announces events only when the test calls `announce`. Reads take several iterations of the event loop.

    Reads fail while `broken` is set.
    """

    def __init__(self) -> None:
        super().__init__(CableSettings(presence_ttl=TTL))
        self.pending: list[PresenceEvent] = []
        self.deliver: Callable[[PresenceEvent | PresenceMissed], None] = lambda event: None
        self.broken = False
        self.reads = 0
        #: Called once, before or after the next read takes its snapshot.
        self.before: Callable[[], object] | None = None
        self.after: Callable[[], object] | None = None

    def _emit(self, type_: Literal["join", "leave"], stream: str, id_: str, info: str) -> list[PresenceEvent]:
        event = PresenceEvent(stream, type_, id_, json.loads(info))
        self.pending.append(event)
        return [event]

    def listen(self, deliver: Callable[[PresenceEvent | PresenceMissed], None]) -> MemoryPresenceListener:
        self.deliver = deliver
        return super().listen(deliver)

    def announce(self, count: int | None = None) -> None:
        """Announce the next `count` pending events, or all of them."""
        events = self.pending[:count]
        del self.pending[:count]
        for event in events:
            self.deliver(event)

    def miss(self) -> None:
        """Lose the pending events, and report that events were missed."""
        self.pending.clear()
        self.deliver(PresenceMissed("s"))

    def forget(self) -> None:
        """Lose all data."""
        self._sessions.clear()
        self._streams.clear()
        self._tombstones.clear()
        self._incarnation += "x"

    async def ainfo(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        self.reads += 1
        await asyncio.sleep(0)
        self.before, before = None, self.before
        if before is not None:
            before()
        if self.broken:
            raise StoreError("broken")
        info = self.info(stream, records=records, overdue=overdue)
        await asyncio.sleep(0)
        self.after, after = None, self.after
        if after is not None:
            after()
        await asyncio.sleep(0)
        return info


class Harness:
    """Rosters with a scripted store, and the members of the stream `s` that each client knows."""

    def __init__(self) -> None:
        self.store = ScriptedStore()
        self.rosters = Rosters(self.store, self._send)
        self.clients: list[dict[str, Any]] = []
        self.sent: list[tuple[str, str]] = []

    def _send(self, stream: str, message: str) -> None:
        body = json.loads(message)
        self.sent.append((body["type"], body["id"]))
        for client in self.clients:
            if body["type"] == "join":
                client[body["id"]] = body["info"]
            else:
                client.pop(body["id"], None)

    async def client(self) -> dict[str, Any]:
        """Return the list of a new client, which later events update."""
        await self.rosters.subscribe("s")
        info, _ = await self.rosters.snapshot("s")
        members = dict(info.records or {})
        assert info.total == len(members)
        self.clients.append(members)
        return members

    def join(self, *ids: str) -> None:
        """Let members join. The joins are not announced yet."""
        for id_ in ids:
            self.store.join("s", f"session of {id_}", id_, f"info of {id_}")

    def leave(self, *ids: str) -> None:
        """Let members leave. The leaves are not announced yet."""
        for id_ in ids:
            self.store.leave("s", f"session of {id_}")

    @property
    def present(self) -> set[str]:
        """The ids that are present in the store."""
        return set(self.store.info("s").records or ())

    async def repaired(self) -> None:
        """Wait until the running repair has ended."""
        repair = self.rosters._rosters["s"].repair
        assert repair is not None
        await repair

    async def repairs_ended(self) -> None:
        """Wait until no repair is running or waiting for servers to join their members again."""
        await until(lambda: not [each for each in self.rosters._rosters.values() if each.repair or each.rejoin_timer])


async def run_loop() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setattr(rosters, "RETRY_DELAY", 0.001)
    return Harness()


async def test_events_are_sent_before_any_client_has_asked_for_the_members(harness: Harness) -> None:
    harness.join("ann")
    harness.leave("ann")
    harness.store.announce()
    assert harness.sent == [("join", "ann"), ("leave", "ann")]
    assert harness.store.reads == 0


class TestSnapshot:
    async def test_holds_the_members(self, harness: Harness) -> None:
        harness.join("ann", "bob")
        assert await harness.client() == {"ann": "info of ann", "bob": "info of bob"}

    async def test_holds_the_events_that_arrived_during_the_read(self, harness: Harness) -> None:
        harness.join("ann")
        harness.store.announce()

        def change() -> None:
            harness.leave("ann")
            harness.join("bob")
            harness.store.announce()

        harness.store.after = change
        assert await harness.client() == {"bob": "info of bob"}

    async def test_is_corrected_by_the_events_that_follow_an_older_one_that_arrived_during_the_read(
        self, harness: Harness
    ) -> None:
        harness.join("ann")
        harness.leave("ann")
        harness.join("ann")
        harness.store.announce(1)
        harness.store.after = lambda: harness.store.announce(1)
        client = await harness.client()
        assert client == {}, "the leave event arrived during the read"
        harness.store.announce()
        assert client == {"ann": "info of ann"}

    async def test_can_be_the_total_only(self, harness: Harness) -> None:
        harness.join("ann")
        info, _ = await harness.rosters.snapshot("s", records=False)
        assert info == PresenceInfo(1, None)

    async def test_adds_no_roster_if_the_stream_was_unsubscribed_meanwhile(self, harness: Harness) -> None:
        await harness.rosters.subscribe("s")
        asking = asyncio.create_task(harness.rosters.snapshot("s"))
        await harness.rosters.unsubscribe("s")
        info, _ = await asking
        assert info == PresenceInfo(0, {})
        assert list(harness.rosters.streams) == []

    async def test_raises_the_error_of_the_store(self, harness: Harness) -> None:
        harness.store.broken = True
        with pytest.raises(StoreError):
            await harness.rosters.snapshot("s")


class TestMissedEvents:
    async def test_are_replaced_by_the_difference(self, harness: Harness) -> None:
        harness.join("ann", "bob")
        harness.store.announce()
        client = await harness.client()
        harness.leave("ann")
        harness.join("eve")
        harness.sent.clear()
        harness.store.miss()
        await harness.repairs_ended()
        assert harness.sent == [("join", "eve"), ("leave", "ann")]
        assert set(client) == {"bob", "eve"}

    async def test_cause_no_read_if_no_client_has_a_list(self, harness: Harness) -> None:
        harness.store.miss()
        await run_loop()
        assert harness.store.reads == 0

    async def test_are_not_replaced_for_ids_whose_events_arrive_during_the_read(self, harness: Harness) -> None:
        harness.join("ann")
        harness.store.announce()
        client = await harness.client()
        harness.join("bob")

        def change() -> None:
            harness.leave("ann", "bob")
            harness.join("eve")
            harness.store.announce()

        harness.store.miss()
        harness.store.after = change
        await harness.repairs_ended()
        assert set(client) == {"eve"}

    async def test_cause_another_read_if_they_are_missed_during_a_read(self, harness: Harness) -> None:
        client = await harness.client()

        def change() -> None:
            harness.join("ann")
            harness.store.miss()

        harness.store.miss()
        harness.store.after = change
        await harness.repairs_ended()
        assert set(client) == {"ann"}

    async def test_are_replaced_as_soon_as_the_store_can_be_read(
        self, harness: Harness, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = await harness.client()
        harness.join("ann")
        harness.store.broken = True
        harness.store.miss()
        await until(lambda: harness.store.reads >= 5)
        harness.store.broken = False
        await harness.repairs_ended()
        assert set(client) == {"ann"}
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1

    async def test_are_not_replaced_if_the_stream_was_unsubscribed_meanwhile(self, harness: Harness) -> None:
        await harness.client()
        harness.join("ann")
        harness.store.miss()
        await asyncio.sleep(0)
        await harness.rosters.unsubscribe("s")
        await run_loop()
        assert harness.sent == []


class TestLostData:
    async def test_joins_are_sent_at_once_and_leaves_when_all_servers_had_time_to_join_again(
        self, harness: Harness
    ) -> None:
        harness.join("ann", "bob")
        harness.store.announce()
        client = await harness.client()
        harness.store.forget()
        harness.join("eve")
        harness.store.pending.clear()
        harness.rosters.check(harness.store.refresh({"s": ()}).incarnations)
        await harness.repaired()
        assert set(client) == {"ann", "bob", "eve"}
        harness.store.join_all([Member("s", "session of ann", "ann", joined=True)])
        await harness.repairs_ended()
        assert set(client) == {"ann", "eve"}

    async def test_a_roster_gets_the_new_incarnation_when_the_leaves_were_sent(self, harness: Harness) -> None:
        harness.join("ann")
        await harness.rosters.subscribe("s")
        _, roster = await harness.rosters.snapshot("s")
        before = roster.incarnation
        harness.store.forget()
        after = harness.store.info("s").incarnation
        harness.store.miss()
        await harness.repaired()
        assert roster.rejoin_timer is not None
        assert roster.incarnation == before != after, "the clients were not sent the leaves"
        await harness.repairs_ended()
        assert roster.incarnation == after

    async def test_an_unchanged_incarnation_causes_no_read(self, harness: Harness) -> None:
        await harness.client()
        harness.rosters.check(harness.store.refresh({"s": (), "other": ()}).incarnations)
        await run_loop()
        assert harness.store.reads == 1

    async def test_close_ends_the_wait_for_members_that_join_again(self, harness: Harness) -> None:
        await harness.client()
        harness.store.forget()
        harness.store.miss()
        await harness.repaired()
        await harness.rosters.close()
        assert list(harness.rosters.streams) == []
        reads = harness.store.reads
        await asyncio.sleep(2 * TTL)
        assert harness.store.reads == reads


ACTIONS = ["join", "leave", "announce", "announce", "miss", "forget", "ask", "wait"]


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=30), st.randoms(use_true_random=False))
def test_every_list_is_correct_in_the_end(actions: list[str], rng: random.Random) -> None:
    async def run() -> None:
        harness = Harness()
        asking: list[asyncio.Task[Any]] = []
        await harness.client()
        for action in actions:
            id_ = rng.choice("abc")
            if action == "join":
                harness.join(id_)
            elif action == "leave":
                harness.leave(id_)
            elif action == "announce":
                harness.store.announce(rng.randint(1, 3))
            elif action == "miss":
                harness.store.miss()
            elif action == "forget":
                # Events that were published before the loss arrive long before the new data count as complete.
                harness.store.announce()
                # Some servers join their members again. The others have been killed.
                back = [name for name in sorted(harness.present) if rng.random() < 0.5]
                harness.store.forget()
                harness.store.join_all([Member("s", f"session of {name}", name, joined=True) for name in back])
                harness.rosters.check(harness.store.refresh({"s": ()}).incarnations)
            elif action == "ask":
                asking.append(asyncio.create_task(harness.client()))
            for _ in range(rng.randint(0, 4)):
                await asyncio.sleep(0)
        await asyncio.gather(*asking)
        harness.store.announce()
        harness.rosters.check(harness.store.refresh({"s": ()}).incarnations)
        await harness.repairs_ended()
        assert [set(client) for client in harness.clients] == [harness.present] * len(harness.clients)

    asyncio.run(run())
