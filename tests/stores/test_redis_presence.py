"""The presence store in Redis: several processes, lost data and lost events."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError
from reliable_cable.hub.presence import PresenceService
from reliable_cable.presence import presence_for
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.presence.base import Member, PresenceEvent, PresenceInfo, PresenceMissed
from reliable_cable.stores.presence.redis import EXPIRE_SIZE, RedisPresenceStore
from reliable_cable.stores.redis.keys import lineage_key
from tests.support.redis import RedisServer, find_binaries

from .conftest import Clock, MakeStore, until
from .presence import KEPT, TTL, elapse, joined, left, listen

pytestmark = pytest.mark.redis


@pytest.fixture
def make_store(redis_url: str, key_prefix: str, clock: Clock, made_stores: list[Any]) -> Iterator[MakeStore]:
    """Return a function that makes stores in a shared Redis server. They act like the stores of separate processes."""

    def make(**settings: Any) -> RedisPresenceStore:
        options = {"presence_ttl": TTL, "sessions_ttl": KEPT, "redis_url": redis_url, "key_prefix": key_prefix}
        store = RedisPresenceStore(CableSettings(**{**options, **settings}), clock=clock)
        made_stores.append(store)
        return store

    yield make
    for store in made_stores:
        store.close()


@pytest.fixture(params=[pytest.param(binary, id=binary.name) for binary in find_binaries()])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server that the test may stop."""
    with RedisServer(tmp_path / "redis", request.param) as server:
        yield server


@pytest.fixture
def make_own(own: RedisServer, made_stores: list[Any]) -> Iterator[MakeStore]:
    """Return a function that makes stores in `own` with the clock of Redis."""

    def make(**settings: Any) -> RedisPresenceStore:
        options = {"presence_ttl": TTL, "sessions_ttl": KEPT, "redis_url": own.url}
        store = RedisPresenceStore(CableSettings(**{**options, **settings}))
        made_stores.append(store)
        return store

    yield make
    for store in made_stores:
        store.close()


@pytest.fixture
def store(make_store: MakeStore) -> RedisPresenceStore:
    made: RedisPresenceStore = make_store()
    return made


def keys(server: RedisServer, prefix: str) -> list[str]:
    """Return the keys of a test, except the key of the lineage record."""
    return sorted(set(server.cli("KEYS", f"{prefix}:*")) - {lineage_key(prefix)})


class TestSeveralProcesses:
    async def test_an_id_joins_with_its_first_session_and_leaves_with_its_last_in_any_process(
        self, make_store: MakeStore
    ) -> None:
        one, two, three = make_store(), make_store(), make_store()
        recorder = await listen(three, "s")
        assert one.join("s", "phone", "1", "Ann") == [joined("1", "Ann")]
        assert two.join("s", "desk", "1", "Anna") == []
        assert one.leave("s", "phone") == []
        assert three.info("s") == PresenceInfo(1, {"1": "Anna"}), "the info of the session that is left"
        assert two.leave("s", "desk") == [left("1", "Anna")]
        assert await recorder.events() == [joined("1", "Ann"), left("1", "Anna")]
        await recorder.listener.close()

    async def test_each_leave_is_returned_once_to_servers_that_expire_at_the_same_time(
        self, make_store: MakeStore, clock: Clock
    ) -> None:
        stores = [make_store() for _ in range(4)]
        streams = [f"s{number}" for number in range(5)]
        recorder = await listen(stores[0], *streams)
        stores[1].join_all([Member(stream, str(id_), str(id_)) for stream in streams for id_ in range(100)])
        await recorder.events()
        elapse(stores[1], clock, TTL - 1)
        clock.advance(1)
        start = threading.Barrier(4)

        def sweep(store: RedisPresenceStore) -> list[PresenceEvent]:
            start.wait()
            return store.expire()

        found = await asyncio.gather(*(asyncio.to_thread(sweep, store) for store in stores))
        everyone = Counter((stream, "leave", str(id_)) for stream in streams for id_ in range(100))
        assert Counter((e.stream, e.type, e.id) for es in found for e in es if e.stream in streams) == everyone
        assert Counter((e.stream, e.type, e.id) for e in await recorder.events()) == everyone
        await recorder.listener.close()

    async def test_the_announced_events_are_those_that_the_calls_returned(self, make_store: MakeStore) -> None:
        stores = [make_store() for _ in range(4)]
        recorder = await listen(stores[0], "s")

        def come_and_go(store: RedisPresenceStore, number: int) -> list[PresenceEvent]:
            caused = []
            for turn in range(40):
                caused += store.join("s", f"phone{number}", str(turn % 2))
                caused += store.leave("s", f"phone{number}") if turn % 3 else []
            return caused + store.leave("s", f"phone{number}")

        with ThreadPoolExecutor(4) as pool:
            loop = asyncio.get_running_loop()
            lists = await asyncio.gather(
                *(loop.run_in_executor(pool, come_and_go, store, number) for number, store in enumerate(stores))
            )
        events = await recorder.events()
        assert Counter((e.type, e.id) for caused in lists for e in caused) == Counter((e.type, e.id) for e in events)
        for id_ in ("0", "1"):
            types = [event.type for event in events if event.id == id_]
            assert types == ["join", "leave"] * (len(types) // 2)
        await recorder.listener.close()

    def test_any_server_expires_sessions_of_streams_without_a_server(self, make_store: MakeStore, clock: Clock) -> None:
        killed, other = make_store(), make_store()
        killed.join("s", "phone", "1")
        killed.join("of another", "phone", "2")
        elapse(other, clock, TTL - 1)
        other.join("t", "phone", "1")
        assert sorted(event.stream for event in elapse(other, clock, 1)) == ["of another", "s"]

    def test_many_sessions_expire_in_short_scripts(
        self, store: RedisPresenceStore, clock: Clock, redis_server: RedisServer
    ) -> None:
        count = EXPIRE_SIZE * 2 + 10
        store.join_all([Member("s", str(number), str(number)) for number in range(count)])
        elapse(store, clock, TTL - 1)
        clock.advance(1)
        redis_server.cli("CONFIG", "RESETSTAT")
        assert len(store.expire()) == count
        assert calls(redis_server) == 4 + 3, "four looks at the index, three sweeps"


class TestData:
    async def test_any_text_is_an_id_a_session_or_a_stream(self, store: RedisPresenceStore) -> None:
        texts = ["", "a b", "{braces}", 'quo"te', "back\\slash", "line\nbreak", "nul\0", "zoë ☃ 𝄞", "1 2 3"]
        info = {"texts": texts, "half": "\ud800"}
        for text in texts:
            recorder = await listen(store, text)
            assert store.join(text, text, text, info) == [joined(text, info, text)]
            assert store.refresh({text: [text, "other"]}).unknown == [(text, "other")]
            assert store.info(text).records == {text: info}
            assert store.leave(text, text) == [left(text, info, text)]
            assert store.left_within(text, 1) == [text]
            assert await recorder.events() == [joined(text, info, text), left(text, info, text)]
            await recorder.listener.close()
        assert store.join("s", "phone", "\udc00") == [joined("\udc00")]

    def test_all_keys_expire_but_members_are_kept_until_a_server_can_announce_their_leaves(
        self, store: RedisPresenceStore, redis_server: RedisServer, key_prefix: str
    ) -> None:
        store.join("s", "phone", "1")
        store.join("s", "desk", "2")
        store.leave("s", "phone")
        found = keys(redis_server, key_prefix)
        assert len(found) == 7
        assert {redis_server.cli("TTL", key) > 80_000 for key in found} == {True}

    def test_after_the_last_leave_only_leaves_are_remembered_for_some_time(
        self, store: RedisPresenceStore, redis_server: RedisServer, key_prefix: str
    ) -> None:
        store.join("s", "phone", "1")
        store.leave("s", "phone")
        store.expire()
        found = keys(redis_server, key_prefix)
        assert [key.rpartition(":")[2] for key in found] == ["left", "presence"]
        assert all(0 < redis_server.cli("TTL", key) <= TTL + store.memory for key in found)

    def test_old_leaves_are_forgotten_while_other_members_stay(
        self, store: RedisPresenceStore, clock: Clock, redis_server: RedisServer, key_prefix: str
    ) -> None:
        store.join("s", "desk", "2")
        for number in range(20):
            store.join("s", "phone", str(number + 10))
            store.leave("s", "phone")
        (left_key,) = [key for key in keys(redis_server, key_prefix) if key.endswith(":left")]
        assert redis_server.cli("ZCARD", left_key) == 20
        clock.advance(store.memory + 1)
        store.refresh({"s": ["desk"]})
        assert redis_server.cli("EXISTS", left_key) == 0

    def test_a_stream_without_data_leaves_the_index(
        self, store: RedisPresenceStore, clock: Clock, redis_server: RedisServer, key_prefix: str
    ) -> None:
        store.join("s", "phone", "1")
        for key in keys(redis_server, key_prefix):
            if key not in (f"{key_prefix}:presence", f"{key_prefix}:presence-sweeps"):
                redis_server.cli("DEL", key)
        assert elapse(store, clock) == []
        assert keys(redis_server, key_prefix) == []

    def test_reads_write_nothing(self, store: RedisPresenceStore, redis_server: RedisServer, key_prefix: str) -> None:
        store.info("nobody")
        store.left_within("nobody", 10)
        store.leave("nobody", "phone")
        store.expire()
        assert keys(redis_server, key_prefix) == []


class TestCosts:
    def test_only_the_first_member_of_a_stream_makes_a_join_look_for_the_record_of_the_last_search(
        self, store: RedisPresenceStore, redis_server: RedisServer
    ) -> None:
        redis_server.cli("CONFIG", "RESETSTAT")
        for number in range(5):
            store.join("s", str(number), str(number))
        store.refresh({"s": ["0", "1"]})
        assert redis_server.cli("INFO", "commandstats")["cmdstat_hsetnx"]["calls"] == 1

    @pytest.mark.parametrize("members", [1, 300, 2500])
    async def test_a_refresh_is_one_call_for_each_stream_with_any_number_of_members(
        self, store: RedisPresenceStore, redis_server: RedisServer, members: int
    ) -> None:
        held = {f"s{stream}": [str(number) for number in range(members)] for stream in range(3)}
        await store.ajoin_all([Member(stream, session, session) for stream in held for session in held[stream]])
        redis_server.cli("CONFIG", "RESETSTAT")
        refreshed = await store.arefresh(held)
        assert refreshed.unknown == []
        assert calls(redis_server) == 3

    async def test_a_round_of_the_service_takes_one_call_for_each_stream_and_one_to_find_expired_sessions(
        self, store: RedisPresenceStore, redis_server: RedisServer
    ) -> None:
        service = PresenceService(store, sleep=lambda seconds: asyncio.Event().wait())
        for number in range(20):
            await service.join("s", str(number), str(number), None)
        await service.open("t")
        await service.rosters.snapshot("t")
        redis_server.cli("CONFIG", "RESETSTAT")
        await service.round()
        assert calls(redis_server) == 3
        await service.stop()


def calls(server: RedisServer) -> int:
    """Return how many scripts were executed since the last `CONFIG RESETSTAT`, not counting calls that failed."""
    found = server.cli("INFO", "commandstats")["cmdstat_evalsha"]
    return int(found["calls"]) - int(found["failed_calls"])


class TestLostData:
    @pytest.mark.parametrize("loss", ["flushall", "restart_empty"])
    async def test_after_a_loss_of_data_members_are_unknown_and_the_incarnation_differs(
        self, own: RedisServer, make_own: MakeStore, loss: str
    ) -> None:
        store = make_own()
        store.join("s", "phone", "1")
        before = store.info("s").incarnation
        getattr(own, loss)()
        refreshed = store.refresh({"s": ["phone"]})
        assert refreshed.unknown == [("s", "phone")]
        assert refreshed.incarnations["s"] not in ("", before)
        assert store.info("s").incarnation == refreshed.incarnations["s"]
        assert store.join_all([Member("s", "phone", "1", joined=True)]) == []
        assert store.info("s").total == 1

    async def test_a_restarted_redis_with_its_data_keeps_members_but_may_lack_leaves(
        self, own: RedisServer, make_own: MakeStore
    ) -> None:
        store = make_own()
        store.join("s", "phone", "1")
        before = store.info("s").incarnation
        own.restart()
        assert store.info("s") == PresenceInfo(1, {"1": None})
        assert store.info("s").incarnation == "", "until someone changes it"
        refreshed = store.refresh({"s": ["phone"]})
        assert refreshed.unknown == []
        assert refreshed.incarnations["s"] not in ("", before)

    async def test_refreshes_and_expiry_correct_an_older_snapshot(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own(presence_ttl=0.2)
        store.join("s", "left since", "1")
        snapshot = own.snapshot()
        store.leave("s", "left since")
        store.join("s", "came since", "2")
        own.restart_from(snapshot)
        assert store.refresh({"s": ["came since"]}).unknown == [("s", "came since")]
        store.join_all([Member("s", "came since", "2", joined=True)])

        def swept() -> bool:
            store.refresh({"s": ["came since"]})
            store.expire()
            return bool(store.info("s").records == {"2": None})

        await until(swept)


class TestLostEvents:
    async def test_missed_events_are_announced_after_a_reconnect(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        heard: list[PresenceEvent | PresenceMissed] = []
        listener = store.listen(heard.append)
        for stream in ("s", "t"):
            await listener.subscribe(stream)
        # The event loop does not run between the next two calls. So the listener cannot reconnect in time, and the
        # announcement of the join is lost.
        own.cli("CLIENT", "KILL", "TYPE", "pubsub")
        store.join("s", "phone", "1")
        await until(lambda: len(heard) == 2)
        assert set(heard) == {PresenceMissed("s"), PresenceMissed("t")}
        store.leave("s", "phone")
        await until(lambda: len(heard) == 3)
        assert heard[2] == left("1")
        await listener.close()

    async def test_the_rosters_of_clients_are_corrected(self, own: RedisServer, make_own: MakeStore) -> None:
        store, other = make_own(), make_own()
        sent: list[tuple[str, str]] = []

        def send(stream: str, message: str) -> None:
            body = json.loads(message)
            sent.append((body["type"], body["id"]))

        service = PresenceService(store, send)
        await service.open("s")
        other.join("s", "phone", "1")
        await until(lambda: sent)
        info, _ = await service.rosters.snapshot("s")
        assert info.records == {"1": None}
        own.cli("CLIENT", "KILL", "TYPE", "pubsub")
        other.leave("s", "phone")
        other.join("s", "desk", "2")
        await until(lambda: len(sent) == 3)
        assert sent == [("join", "1"), ("join", "2"), ("leave", "1")]
        await service.close("s")
        await service.stop()

    async def test_the_rosters_of_clients_are_corrected_after_a_loss_of_data_without_joins_of_returning_members(
        self, own: RedisServer, make_own: MakeStore
    ) -> None:
        # No member expires during the test. Leaves are sent two seconds after `here` has noticed the loss.
        store, other = make_own(presence_ttl=2), make_own(presence_ttl=60)
        sent: list[tuple[str, str]] = []

        def send(stream: str, message: str) -> None:
            body = json.loads(message)
            sent.append((body["type"], body["id"]))

        here, there = PresenceService(store, send), PresenceService(other)
        await here.open("s")
        await there.join("s", "phone", "stays", None)
        other.join("s", "killed", "goes", None)
        await here.rosters.snapshot("s")
        await until(lambda: len(sent) == 2)
        sent.clear()
        own.flushall()
        await here.round()
        await there.round()
        await until(lambda: ("leave", "goes") in sent)
        assert ("leave", "stays") not in sent
        assert (await store.ainfo("s")).records == {"stays": None}
        await here.close("s")
        await asyncio.gather(here.stop(), there.stop())


class TestARedisThatIsAway:
    async def test_a_read_of_a_stopped_redis_is_an_error(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        own.kill()
        with pytest.raises(StoreError):
            store.info("s")
        with pytest.raises(StoreError):
            await store.ainfo("s")

    async def test_a_join_during_an_outage_reaches_redis_later(self, own: RedisServer, make_own: MakeStore) -> None:
        service = PresenceService(make_own(presence_ttl=0.3))
        own.kill()
        await service.join("s", "phone", "1", "Ann")
        own.start()
        other = make_own()
        await until(lambda: other.info("s").records == {"1": "Ann"})
        await service.stop()


async def test_presence_for_works_in_any_process(redis_url: str, key_prefix: str, settings: Any) -> None:
    settings.RELIABLE_CABLE = {
        "REDIS_URL": redis_url,
        "KEY_PREFIX": key_prefix,
        "ENGINE": {
            "streams": "reliable_cable.stores.streams.redis.RedisStreamStore",
            "presence": "reliable_cable.stores.presence.redis.RedisPresenceStore",
            "sessions": "reliable_cable.stores.sessions.memory.MemorySessionStore",
        },
    }
    presence = presence_for("s")
    store = get_engine().presence
    assert isinstance(store, RedisPresenceStore)
    await store.ajoin_all([Member("s", "phone", "1", "Ann")])
    assert await presence.atotal() == await asyncio.to_thread(presence.total) == 1
    assert await asyncio.to_thread(presence.info) == await presence.ainfo() == PresenceInfo(1, {"1": "Ann"})
    store.close()
    await store.aclose()
