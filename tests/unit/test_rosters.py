"""However events are lost, late, or crossed by reads: at rest, every client believes who is there."""

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

TTL = 0.02


class ScriptedStore(MemoryPresenceStore):
    """Announces an event when the test says so; its reads take their time, and fail while it is `broken`."""

    def __init__(self) -> None:
        super().__init__(CableSettings(presence_ttl=TTL))
        self.pending: list[PresenceEvent] = []
        self.deliver: Callable[[PresenceEvent | PresenceMissed], None] = lambda event: None
        self.broken = False
        self.reads = 0
        #: Called once, before or after the next read looks at what is there.
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
        """Announce the next events that are due."""
        events = self.pending[:count]
        del self.pending[:count]
        for event in events:
            self.deliver(event)

    def miss(self) -> None:
        """Lose what is due, and say so."""
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
    """Lists over a scripted store, and what each of some clients believes of the stream `s`."""

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
        """Return what a new client believes after it asked."""
        await self.rosters.subscribe("s")
        info, _ = await self.rosters.snapshot("s")
        believed = dict(info.records or {})
        assert info.total == len(believed)
        self.clients.append(believed)
        return believed

    def join(self, *ids: str) -> None:
        """Let ids come, without announcing it."""
        for id_ in ids:
            self.store.join("s", f"session of {id_}", id_, f"info of {id_}")

    def leave(self, *ids: str) -> None:
        """Let ids leave, without announcing it."""
        for id_ in ids:
            self.store.leave("s", f"session of {id_}")

    @property
    def there(self) -> set[str]:
        """Who is there."""
        return set(self.store.info("s").records or ())

    async def repaired(self) -> None:
        """Wait until the list was compared with the store once; no timer has run since then."""
        repair = self.rosters._rosters["s"].repair
        assert repair is not None
        await repair

    async def settled(self) -> None:
        """Wait until nothing is being made right any more."""
        await until(lambda: not [each for each in self.rosters._rosters.values() if each.repair or each.rejoin_timer])


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setattr(rosters, "RETRY_DELAY", 0.001)
    return Harness()


async def test_joins_and_leaves_are_sent_whether_anyone_has_asked_or_not(harness: Harness) -> None:
    harness.join("ann")
    harness.leave("ann")
    harness.store.announce()
    assert harness.sent == [("join", "ann"), ("leave", "ann")]
    assert harness.store.reads == 0


class TestAnAnswer:
    async def test_holds_who_is_there(self, harness: Harness) -> None:
        harness.join("ann", "bob")
        assert await harness.client() == {"ann": "info of ann", "bob": "info of bob"}

    async def test_holds_what_was_announced_while_it_was_read(self, harness: Harness) -> None:
        harness.join("ann")
        harness.store.announce()

        def change() -> None:
            harness.leave("ann")
            harness.join("bob")
            harness.store.announce()

        harness.store.after = change
        assert await harness.client() == {"bob": "info of bob"}

    async def test_and_what_comes_after_an_older_event_that_crossed_it_decides(self, harness: Harness) -> None:
        harness.join("ann")
        harness.leave("ann")
        harness.join("ann")
        harness.store.announce(1)
        harness.store.after = lambda: harness.store.announce(1)
        client = await harness.client()
        assert client == {}, "it was told of the leave"
        harness.store.announce()
        assert client == {"ann": "info of ann"}

    async def test_with_the_total_only_is_no_list(self, harness: Harness) -> None:
        harness.join("ann")
        info, _ = await harness.rosters.snapshot("s", records=False)
        assert info == PresenceInfo(1, None)

    async def test_that_comes_when_the_stream_was_left_keeps_nothing(self, harness: Harness) -> None:
        await harness.rosters.subscribe("s")
        asking = asyncio.create_task(harness.rosters.snapshot("s"))
        await harness.rosters.unsubscribe("s")
        info, _ = await asking
        assert info == PresenceInfo(0, {})
        assert list(harness.rosters.streams) == []

    async def test_that_fails_raises(self, harness: Harness) -> None:
        harness.store.broken = True
        with pytest.raises(StoreError):
            await harness.rosters.snapshot("s")


class TestMissedEvents:
    async def test_are_made_up_for_by_the_difference(self, harness: Harness) -> None:
        harness.join("ann", "bob")
        harness.store.announce()
        client = await harness.client()
        harness.leave("ann")
        harness.join("eve")
        harness.sent.clear()
        harness.store.miss()
        await harness.settled()
        assert harness.sent == [("join", "eve"), ("leave", "ann")]
        assert set(client) == {"bob", "eve"}

    async def test_cost_nothing_where_nobody_has_a_list(self, harness: Harness) -> None:
        harness.store.miss()
        await turns()
        assert harness.store.reads == 0

    async def test_of_ids_whose_events_cross_the_read_are_left_to_these(self, harness: Harness) -> None:
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
        await harness.settled()
        assert set(client) == {"eve"}

    async def test_again_during_the_read_are_read_again(self, harness: Harness) -> None:
        client = await harness.client()

        def change() -> None:
            harness.join("ann")
            harness.store.miss()

        harness.store.miss()
        harness.store.after = change
        await harness.settled()
        assert set(client) == {"ann"}

    async def test_are_asked_for_until_the_store_answers(
        self, harness: Harness, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = await harness.client()
        harness.join("ann")
        harness.store.broken = True
        harness.store.miss()
        await until(lambda: harness.store.reads >= 5)
        harness.store.broken = False
        await harness.settled()
        assert set(client) == {"ann"}
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1

    async def test_of_a_stream_that_is_left_meanwhile_are_not_sent(self, harness: Harness) -> None:
        await harness.client()
        harness.join("ann")
        harness.store.miss()
        await asyncio.sleep(0)
        await harness.rosters.unsubscribe("s")
        await turns()
        assert harness.sent == []


class TestLostData:
    async def test_who_is_there_is_sent_at_once_and_who_is_missing_when_all_could_come_back(
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
        await harness.settled()
        assert set(client) == {"ann", "eve"}

    async def test_a_list_is_by_the_new_data_when_it_is_right(self, harness: Harness) -> None:
        harness.join("ann")
        await harness.rosters.subscribe("s")
        _, roster = await harness.rosters.snapshot("s")
        before = roster.incarnation
        harness.store.forget()
        after = harness.store.info("s").incarnation
        harness.store.miss()
        await harness.repaired()
        assert roster.rejoin_timer is not None
        assert roster.incarnation == before != after, "who left is not known to its clients yet"
        await harness.settled()
        assert roster.incarnation == after

    async def test_the_same_data_are_not_read_again(self, harness: Harness) -> None:
        await harness.client()
        harness.rosters.check(harness.store.refresh({"s": (), "other": ()}).incarnations)
        await turns()
        assert harness.store.reads == 1


ACTIONS = ["join", "leave", "announce", "announce", "miss", "forget", "ask", "wait"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=30), st.randoms(use_true_random=False))
def test_at_rest_every_client_believes_who_is_there(actions: list[str], rng: random.Random) -> None:
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
                # What was published has arrived long before the data that follow count as complete.
                harness.store.announce()
                # Some servers join their members again, some were killed meanwhile.
                back = [name for name in sorted(harness.there) if rng.random() < 0.5]
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
        await harness.settled()
        assert [set(client) for client in harness.clients] == [harness.there] * len(harness.clients)

    asyncio.run(run())
