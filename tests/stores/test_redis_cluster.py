"""Stores on a Redis Cluster: streams in a slot that is moved keep their epochs, and failovers begin new epochs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from reliable_cable.conf import CableSettings, get_settings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, InvalidOption, StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.redis import cluster as cluster_client
from reliable_cable.stores.redis.cleaning import delete_keys
from reliable_cable.stores.redis.cluster import ClusterClient
from reliable_cable.stores.redis.cluster_node import Foreign, NodeClient
from reliable_cable.stores.redis.keys import PARTITIONS, SLOTS, key_slot, lineage_key
from reliable_cable.stores.streams.base import Advanced, Message, Published, StreamEvent, Transient
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.conftest import until
from tests.stores.writers import append, check_history, writing
from tests.support.redis import CLUSTER, RedisPool, find_all_binaries
from tests.support.redis_cluster import SHARDED, RedisCluster

pytestmark = pytest.mark.redis

MakeStore = Callable[..., RedisStreamStore]


@pytest.fixture
def cluster(redis_pool: RedisPool) -> RedisCluster:
    """The shared cluster of three primaries, which no other test uses at the same time."""
    shared = redis_pool.find(CLUSTER)
    assert isinstance(shared, RedisCluster)
    return shared


@pytest.fixture(scope="module")
def failing_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A cluster of three primaries with a replica each, whose nodes soon notice failures."""
    with RedisCluster(tmp_path_factory.mktemp("failing"), replicas=1, node_timeout=2.0) as started:
        yield started


@pytest.fixture
def make_store(cluster: RedisCluster, key_prefix: str, made_stores: list[Any]) -> MakeStore:
    """A function that makes stores, which act like the stores of separate processes."""

    def make(url: str = "", **settings: Any) -> RedisStreamStore:
        store = RedisStreamStore(CableSettings(redis_url=url or cluster.url, key_prefix=key_prefix, **settings))
        made_stores.append(store)
        return store

    return make


@asynccontextmanager
async def hearing(store: RedisStreamStore) -> AsyncIterator[list[StreamEvent]]:
    """Yield a list to which the events of the stream `a` are added during a block."""
    heard: list[StreamEvent] = []
    listener = store.listen(heard.append)
    await listener.subscribe("a")
    try:
        yield heard
    finally:
        await listener.close()


def slot_of(store: RedisStreamStore, stream: str) -> int:
    return key_slot(store.keys(stream)[0])


class TestKeys:
    def test_the_keys_of_a_stream_and_its_channel_are_in_one_slot(self, make_store: MakeStore) -> None:
        names = make_store().client.names
        for stream in ("a", "room:{1}", "}{", "ü"):
            store = make_store()
            partition = names.partition(stream)
            keys = [*store.keys(stream), names.lineage(partition), names.channel(stream)]
            keys += [f"{partition}:presence", f"{partition}:presence-sweeps"]
            assert len({key_slot(key) for key in keys}) == 1

    def test_the_partitions_are_spread_evenly_over_the_slots(self, make_store: MakeStore) -> None:
        slots = sorted(key_slot(partition) for partition in make_store().client.names.partitions())
        assert [slot * PARTITIONS // SLOTS for slot in slots] == list(range(PARTITIONS))


class TestMoves:
    async def test_a_slot_that_is_moved_under_load_loses_nothing_and_keeps_its_epoch(
        self, cluster: RedisCluster, make_store: MakeStore
    ) -> None:
        store, slot = make_store(history_size=100_000), slot_of(make_store(), "a")
        async with hearing(make_store()) as heard:
            async with writing(store, "a") as writer:
                for _ in range(2):
                    await asyncio.to_thread(cluster.move, slot, cluster.other(cluster.owner(slot)))
            assert not writer.failed | writer.uncertain
            await check_history(store, "a", writer)
            assert len(writer.epochs) == 1
            heard.clear()
            await until(lambda: cluster.owner(slot).cli("PUBSUB", "SHARDNUMSUB", store.channel("a"))[1] == 1)
            last = await append(store, "a", '"last"')
            await until(lambda: any(isinstance(event, Published) and event.position == last for event in heard))

    async def test_a_listener_is_told_that_it_may_have_missed_messages(
        self, cluster: RedisCluster, make_store: MakeStore
    ) -> None:
        store = make_store()
        slot = slot_of(store, "a")
        async with hearing(store) as heard:
            await asyncio.to_thread(cluster.move, slot, cluster.other(cluster.owner(slot)))
            await until(lambda: Advanced("a") in heard)

    async def test_a_listener_hears_messages_after_a_slot_was_moved_away_and_back(
        self, cluster: RedisCluster, make_store: MakeStore
    ) -> None:
        store = make_store()
        slot = slot_of(store, "a")
        async with hearing(store) as heard:
            first = cluster.owner(slot)
            # The event loop does not run during the moves, so the process finds the slot where it was.
            cluster.move(slot, cluster.other(first))
            cluster.move(slot, first)
            await until(lambda: first.cli("PUBSUB", "SHARDNUMSUB", store.channel("a"))[1] == 1)
            await until(lambda: Advanced("a") in heard)
            await store.awhisper("a", Message("1"))
            await until(lambda: Transient("a", "1", whisper=True) in heard)

    async def test_a_call_waits_while_the_keys_of_its_stream_are_on_two_nodes(
        self, cluster: RedisCluster, make_store: MakeStore
    ) -> None:
        store = make_store()
        before = await append(store, "a", "1")
        slot = slot_of(store, "a")
        target = cluster.other(cluster.owner(slot))
        source = cluster.begin_move(slot, target)
        assert cluster.move_keys(slot, source, target, limit=1) == 1
        refused = int(source.cli("INFO", "errorstats").get("errorstat_TRYAGAIN", {}).get("count", 0))

        def tried() -> bool:
            stats = [node.cli("INFO", "errorstats").get("errorstat_TRYAGAIN", {}) for node in (source, target)]
            return sum(int(each.get("count", 0)) for each in stats) > refused + 1

        task = asyncio.create_task(append(store, "a", "2"))
        await until(tried)
        assert not task.done()
        while cluster.move_keys(slot, source, target):
            pass
        cluster.end_move(slot, target)
        assert await task == StreamPosition(before.epoch, 2)

    async def test_a_call_fails_and_stores_nothing_if_a_move_takes_too_long(
        self, cluster: RedisCluster, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cluster_client, "MOVE_TIME", 0.1)
        store = make_store()
        before = await append(store, "a", "1")
        slot = slot_of(store, "a")
        target = cluster.other(cluster.owner(slot))
        source = cluster.begin_move(slot, target)
        cluster.move_keys(slot, source, target, limit=1)
        with pytest.raises(BroadcastError, match=r"Nothing was broadcast.*being moved"):
            await append(store, "a", "2")
        while cluster.move_keys(slot, source, target):
            pass
        cluster.end_move(slot, target)
        assert await append(store, "a", "3") == StreamPosition(before.epoch, 2)

    async def test_an_epoch_survives_a_move_that_no_process_has_noticed_at_once(
        self, cluster: RedisCluster, make_store: MakeStore
    ) -> None:
        before = await append(make_store(), "a", "1")
        slot = slot_of(make_store(), "a")
        await asyncio.to_thread(cluster.move, slot, cluster.other(cluster.owner(slot)))
        assert await append(make_store(), "a", "2") == StreamPosition(before.epoch, 2)

    async def test_what_is_known_of_one_former_node_says_nothing_about_another_one(
        self, cluster: RedisCluster, make_store: MakeStore
    ) -> None:
        store = make_store()
        before = await append(store, "a", "1")
        client, slot = store.client, slot_of(store, "a")
        assert isinstance(client, ClusterClient)
        # The process knows the former node of an earlier move. The record names another node now.
        former = Foreign(client.names.lineage(client.names.partition("a")), "0" * 40, "1" * 40, "")
        await asyncio.to_thread(cluster.move, slot, cluster.other(cluster.owner(slot)))
        client.lineages.set_origin(former, unbroken=True)
        assert await append(store, "a", "2") == StreamPosition(before.epoch, 2)

    async def test_a_running_process_notes_moves_so_that_the_former_node_can_be_removed(
        self, cluster: RedisCluster, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store()
        names = store.client.names
        stream = next(f"s{n}" for n in range(99) if names.partition(f"s{n}") != names.partition("a"))
        await append(store, "a", "1")
        await append(store, stream, "1")
        slot = slot_of(store, "a")
        target = cluster.other(cluster.owner(slot))
        await asyncio.to_thread(cluster.move, slot, target)
        monkeypatch.setattr(cluster_client, "TOPOLOGY_AGE", 0)
        await append(store, stream, "2")  # this call does not use the slot of the stream `a`
        record = target.cli("HGET", names.lineage(names.partition("a")), "run_id")
        assert record == target.cli("INFO", "server")["run_id"]


@pytest.mark.parametrize("turns", range(4))
async def test_a_subscription_is_kept_although_the_last_other_one_on_its_node_ends(
    cluster: RedisCluster, make_store: MakeStore, turns: int
) -> None:
    store, heard = make_store(), list[StreamEvent]()
    node = cluster.owner(slot_of(store, "a"))
    other = next(f"s{n}" for n in range(999) if cluster.owner(slot_of(store, f"s{n}")) is node)
    listener = store.listen(heard.append)
    await listener.subscribe("a")
    subscribing = asyncio.create_task(listener.subscribe(other))
    for _ in range(turns):
        await asyncio.sleep(0)
    await listener.unsubscribe("a")
    await subscribing
    await store.awhisper(other, Message("1"))
    await until(lambda: heard == [Transient(other, "1", whisper=True)])
    await listener.close()
    await until(lambda: not node.cli("PUBSUB", "SHARDCHANNELS", f"{store.settings.key_prefix}*"))


class TestLosses:
    async def test_a_restarted_node_begins_new_epochs(self, cluster: RedisCluster, make_store: MakeStore) -> None:
        store = make_store()
        before = await append(store, "a", "1")
        node = cluster.owner(slot_of(store, "a"))
        await asyncio.to_thread(node.restart, kill=True)
        await asyncio.to_thread(cluster.wait_until_whole)
        after = await append(store, "a", "2")
        assert after.offset == 1
        assert after.epoch != before.epoch

    async def test_new_epochs_can_be_begun_on_all_nodes(self, make_store: MakeStore) -> None:
        store, other = make_store(), make_store()
        before = [await append(store, name, "1") for name in "abcdefgh"]
        assert await asyncio.to_thread(store.forget_all) == 8
        after = [await append(other, name, "2") for name in "abcdefgh"]
        assert {position.offset for position in after} == {1}
        assert not {position.epoch for position in before} & {position.epoch for position in after}

    @pytest.mark.parametrize("how", ["failover", "kill"])
    async def test_a_failover_under_load_loses_nothing_of_the_newest_epoch(
        self, failing_cluster: RedisCluster, make_store: MakeStore, how: str
    ) -> None:
        cluster = failing_cluster
        await asyncio.to_thread(cluster.wait_until_whole)
        store = make_store(cluster.url, history_size=100_000)
        change = cluster.fail_over if how == "failover" else cluster.replace
        async with hearing(make_store(cluster.url)) as heard:
            async with writing(store, "a") as writer:
                primary = await asyncio.to_thread(cluster.owner, slot_of(store, "a"))
                await asyncio.to_thread(change, primary)
                await until(lambda: len(writer.epochs) >= 2)
            await check_history(store, "a", writer)
            await until(lambda: Advanced("a") in heard)
            last = await append(store, "a", '"last"')
            await until(
                lambda: any(
                    event == Advanced("a") or (isinstance(event, Published) and event.position == last)
                    for event in heard
                )
            )

    async def test_a_failover_before_a_move_begins_a_new_epoch_although_nobody_saw_it(
        self, failing_cluster: RedisCluster, make_store: MakeStore
    ) -> None:
        cluster = failing_cluster
        await asyncio.to_thread(cluster.wait_until_whole)
        before = await append(make_store(cluster.url), "b", "1")
        slot = slot_of(make_store(cluster.url), "b")
        primary = await asyncio.to_thread(cluster.owner, slot)
        promoted = await asyncio.to_thread(cluster.fail_over, primary)
        await asyncio.to_thread(cluster.move, slot, cluster.other(promoted))
        after = await append(make_store(cluster.url), "b", "2")
        assert after.offset == 1
        assert after.epoch != before.epoch


async def test_a_node_that_hangs_delays_no_calls_for_other_nodes(
    cluster: RedisCluster, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(redis_options={"socket_timeout": 1.0})
    client, hanging = store.client, cluster.primaries[0]
    assert isinstance(client, ClusterClient)
    stream = next(f"s{n}" for n in range(99) if cluster.owner(slot_of(store, f"s{n}")) is not hanging)
    await append(store, stream, "1")
    attempt, asked = client._attempt_on, list[int]()

    async def record(node: NodeClient, *args: Any) -> list[Any]:
        asked.append(node.address[1])
        return await attempt(node, *args)

    monkeypatch.setattr(client, "_attempt_on", record)
    monkeypatch.setattr(cluster_client, "TOPOLOGY_AGE", 0)
    hanging.suspend()
    try:
        for _ in range(10):
            await append(store, stream, "2")
    finally:
        hanging.resume()
    assert asked.count(hanging.port) == 1
    assert len(asked) > 20, "the slots were read before each call"


class TestCommands:
    async def test_the_doctor_and_the_test_kit_use_all_nodes(
        self, cluster: RedisCluster, make_store: MakeStore, key_prefix: str, settings: Any
    ) -> None:
        settings.RELIABLE_CABLE = {"REDIS_URL": cluster.url, "KEY_PREFIX": key_prefix}
        for number in range(12):
            await append(make_store(), f"s{number}", "1")
        out = StringIO()
        await asyncio.to_thread(call_command, "cable_doctor", stdout=out, stderr=out)
        assert "Nothing is wrong." in out.getvalue()
        assert all(f"The primary 127.0.0.1:{port} has " in out.getvalue() for port in cluster.slots())
        assert "no stream can be used (cluster-require-full-coverage yes)" in out.getvalue()
        await asyncio.to_thread(call_command, "cable_prune", stdout=out)
        await asyncio.to_thread(delete_keys, get_settings())
        assert cluster.cli("KEYS", f"{key_prefix}:*") == []

    async def test_the_doctor_names_the_node_whose_settings_are_wrong(
        self, cluster: RedisCluster, make_store: MakeStore
    ) -> None:
        node = cluster.primaries[1]
        node.cli("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "volatile-lru")
        try:
            (problem,) = await asyncio.to_thread(make_store().problems)
        finally:
            node.cli("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction")
        assert f"127.0.0.1:{node.port}" in problem
        assert "set maxmemory-policy to noeviction" in problem


class TestOldServers:
    @pytest.fixture
    def old_cluster(self, tmp_path: Path) -> Iterator[RedisCluster]:
        """A cluster of servers that have no sharded pub/sub."""
        old = next((binary for binary in find_all_binaries() if binary.version < SHARDED), None)
        if old is None:
            pytest.skip("no Redis before version 7")
        with RedisCluster(tmp_path, binary=old) as started:
            yield started

    async def test_they_announce_messages_to_all_nodes(self, old_cluster: RedisCluster, make_store: MakeStore) -> None:
        store, heard = make_store(old_cluster.url), list[StreamEvent]()
        listener = store.listen(heard.append)
        await listener.subscribe_many(["a", "b", "c"])
        first = [await append(store, stream, '"1"') for stream in "abc"]
        await until(lambda: {event.position for event in heard if isinstance(event, Published)} == set(first))
        slot = slot_of(store, "a")
        await asyncio.to_thread(old_cluster.move, slot, old_cluster.other(old_cluster.owner(slot)))
        second = await append(store, "a", '"2"')
        assert second == StreamPosition(first[0].epoch, 2)
        await until(lambda: any(isinstance(event, Published) and event.position == second for event in heard))
        await listener.close()


class TestBatches:
    async def test_a_batch_over_several_slots_is_refused(self, make_store: MakeStore) -> None:
        store = make_store()
        items = [(f"s{number}", Message("1")) for number in range(3)]
        with pytest.raises(InvalidOption, match="atomic=False"):
            await store.aappend(items)
        assert {position.offset for position in await store.apositions(["s0", "s1", "s2"])} == {0}
        assert [position.offset for position in await store.aappend_parts(items)] == [1, 1, 1]

    async def test_an_error_after_the_first_slot_says_so(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store()
        items = [(f"s{number}", Message("1")) for number in range(2)]
        append_one = store.aappend

        async def fail_second(items: Any) -> list[StreamPosition]:
            if items[0][0] == "s1":
                raise BroadcastError("no")
            return await append_one(items)

        monkeypatch.setattr(store, "aappend", fail_second)
        with pytest.raises(BroadcastUncertain, match="1 of 2 messages were stored"):
            await store.aappend_parts(items)


class TestSettings:
    async def test_a_single_server_is_no_cluster(self, redis_url: str, key_prefix: str) -> None:
        store = RedisStreamStore(CableSettings(redis_url=redis_url, redis_cluster=True, key_prefix=key_prefix))
        with pytest.raises(StoreError, match="cluster support disabled"):
            await store.aposition("a")
        await store.aclose()

    async def test_a_node_of_a_cluster_is_no_single_server(self, cluster: RedisCluster, make_store: MakeStore) -> None:
        prefix = "single"
        node = cluster.other(cluster.owner(key_slot(lineage_key(prefix))))
        store = RedisStreamStore(CableSettings(redis_url=node.url, key_prefix=prefix))
        with pytest.raises(StoreError, match="a node of a cluster, so REDIS_CLUSTER must be True"):
            await store.aposition("a")
        await store.aclose()

    async def test_one_node_is_enough_to_find_the_others(self, cluster: RedisCluster, make_store: MakeStore) -> None:
        store = make_store(f"redis://127.0.0.1:{cluster.nodes[1].port}", redis_cluster=True)
        assert {(await append(store, f"s{number}", "1")).offset for number in range(12)} == {1}
        assert store.problems() == []
        assert len(store.clocks()) == len(cluster.slots())
