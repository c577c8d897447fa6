"""Stores recover from failovers if clients reach the Redis servers at one address."""

from __future__ import annotations

import asyncio

import pytest

from reliable_cable.exceptions import BroadcastError, StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.redis import lineage
from reliable_cable.stores.redis.listening import pubsub_of
from reliable_cable.stores.streams import redis_listener
from reliable_cable.stores.streams.base import Advanced, Message, Published, StreamEvent, Transient
from tests.stores.conftest import until
from tests.stores.redis_pair import MakeStore, RedisPair, append, fail_over, promote
from tests.support.faults import FaultProxy
from tests.support.redis import RedisServer
from tests.support.server import free_port

pytestmark = pytest.mark.redis


class TestFailover(RedisPair):
    async def test_writes_and_announcements_work_again_while_old_connections_stay_open(
        self, primary: RedisServer, replica: RedisServer, address: FaultProxy, make_store: MakeStore
    ) -> None:
        store = make_store()
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await append(store, "1")
        await asyncio.to_thread(store.append, [("b", Message("1"))])
        await asyncio.to_thread(fail_over, address, primary, replica)
        opened = len(address.links)
        assert opened >= 3, "pub/sub, async, sync"
        assert (await append(store, "2"))[0].offset == 1
        assert (await asyncio.to_thread(store.append, [("b", Message("2"))]))[0].offset == 1
        await until(lambda: Advanced("a") in heard)
        heard.clear()
        await append(store, "3")
        await until(lambda: heard)
        assert [(event.entry.offset, event.entry.data) for event in heard if isinstance(event, Published)] == [(2, "3")]
        await listener.close()

    @pytest.mark.parametrize("demoted", [True, False], ids=["demoted", "left behind"])
    async def test_a_process_that_only_listens_finds_the_new_primary(
        self,
        primary: RedisServer,
        replica: RedisServer,
        address: FaultProxy,
        make_store: MakeStore,
        monkeypatch: pytest.MonkeyPatch,
        demoted: bool,
    ) -> None:
        monkeypatch.setattr(redis_listener, "CHECK_INTERVAL", 0.1)
        if not demoted:
            monkeypatch.setattr(lineage, "MAX_CONNECTION_AGE", 0.2)
        store, elsewhere = make_store(), make_store(replica.port)
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await listener.check()
        if demoted:
            await asyncio.to_thread(fail_over, address, primary, replica)
        else:
            replica.promote()
            address.move(replica.port)
        await append(elsewhere, "1")
        await until(lambda: Advanced("a") in heard)
        await until(lambda: pubsub_of(store.client).connected)
        assert (await store.aread("a", after=0, limit=10)).tail == 1
        await until(lambda: replica.cli("PUBSUB", "NUMSUB", store.channel("a"))[1] == 1)
        await append(elsewhere, "2")
        await until(lambda: any(isinstance(event, Published) and event.entry.data == "2" for event in heard))
        await listener.close()

    async def test_a_transient_message_is_not_sent_to_a_replica(
        self, primary: RedisServer, replica: RedisServer, address: FaultProxy, make_store: MakeStore
    ) -> None:
        store, elsewhere = make_store(), make_store(replica.port)
        await store.apublish_transient("a", Message("0"))
        await asyncio.to_thread(fail_over, address, primary, replica)
        heard: list[StreamEvent] = []
        listener = elsewhere.listen(heard.append)
        await listener.subscribe("a")
        await store.apublish_transient("a", Message("1"))
        await until(lambda: heard)
        assert heard == [Transient("a", "1")]
        await listener.close()

    async def test_a_broadcast_without_a_primary_stores_nothing_and_fails(
        self, primary: RedisServer, replica: RedisServer, address: FaultProxy, make_store: MakeStore
    ) -> None:
        store = make_store()
        await append(store, "1")
        await asyncio.to_thread(fail_over, address, primary, replica)
        address.move(primary.port)
        with pytest.raises(BroadcastError, match=r"Nothing was broadcast.*a replica"):
            await append(store, "2")
        with pytest.raises(StoreError):
            await store.aposition("a")
        address.move(replica.port)
        assert [position.offset for position in await append(store, "3")] == [1]

    async def test_reads_also_leave_a_replica_that_has_lost_its_primary(
        self, primary: RedisServer, replica: RedisServer, address: FaultProxy, make_store: MakeStore
    ) -> None:
        store = make_store()
        await append(store, "1")
        await promote(replica, primary)
        primary.cli("CONFIG", "SET", "replica-serve-stale-data", "no")
        primary.cli("REPLICAOF", "127.0.0.1", free_port())
        address.move(replica.port)
        assert await store.aposition("a") == StreamPosition("", 0)
        assert [position.offset for position in await append(store, "2")] == [1]

    async def test_connections_leave_a_server_that_loads_its_data(
        self, primary: RedisServer, replica: RedisServer, address: FaultProxy, make_store: MakeStore
    ) -> None:
        store = make_store()
        await append(store, "1")
        await promote(replica, primary)
        # Write to the former primary, so that its data differ from the replica's. When it becomes a replica, it must
        # then load a full copy of the data. While it loads, it answers commands only now and then, after it has loaded
        # a key.
        primary.cli("SET", "own", "")
        replica.cli("CONFIG", "SET", "rdbcompression", "no")
        replica.cli("EVAL", "for key = 1, 100 do redis.call('SET', key, string.rep('x', 200000)) end", 0)
        primary.cli("CONFIG", "SET", "key-load-delay", "40000")
        primary.cli("REPLICAOF", "127.0.0.1", replica.port)
        await until(lambda: primary.cli("INFO", "persistence")["loading"])
        address.move(replica.port)
        assert [position.offset for position in await append(store, "2")] == [1]

    async def test_a_primary_without_enough_replicas_gets_few_new_connections(
        self, primary: RedisServer, make_store: MakeStore
    ) -> None:
        store = make_store()
        (before,) = await append(store, "1")
        primary.cli("CONFIG", "SET", "min-replicas-to-write", "1")
        opened = primary.cli("INFO", "stats")["total_connections_received"]
        for _ in range(100):
            with pytest.raises(BroadcastError, match="Nothing was broadcast"):
                await append(store, "2")
        assert primary.cli("INFO", "stats")["total_connections_received"] - opened < 50
        assert (await store.aread("a", after=0, limit=10)).tail == 1
        primary.cli("CONFIG", "SET", "min-replicas-to-write", "0")
        assert await append(store, "3") == [StreamPosition(before.epoch, 2)]

    async def test_a_connection_has_a_maximum_age(
        self,
        primary: RedisServer,
        replica: RedisServer,
        address: FaultProxy,
        make_store: MakeStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # The old primary is still running, and has not noticed that it was replaced.
        monkeypatch.setattr(lineage, "MAX_CONNECTION_AGE", 0)
        store = make_store()
        await append(store, "1")
        await asyncio.to_thread(store.append, [("b", Message("1"))])
        replica.promote()
        address.move(replica.port)
        await append(store, "2")
        await asyncio.to_thread(store.append, [("b", Message("2"))])
        assert (await make_store(replica.port).aread("a", after=0, limit=10)).entries[-1].data == "2"
        assert (await make_store(replica.port).aread("b", after=0, limit=10)).entries[-1].data == "2"
