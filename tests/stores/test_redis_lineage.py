"""Epochs that end when Redis gets other data, and fences on the pub/sub connection."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.presence.base import Member
from reliable_cable.stores.presence.redis import RedisPresenceStore
from reliable_cable.stores.redis import lineage
from reliable_cable.stores.redis.client import Call
from reliable_cable.stores.streams.base import Advanced, Message, StreamEvent
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.conftest import single_client, until
from tests.stores.redis_pair import MakeStore, RedisPair, append, fail_over, promote
from tests.support.faults import FaultProxy
from tests.support.redis import RedisServer

pytestmark = pytest.mark.redis


async def return_to_older_data(
    primary: RedisServer, replica: RedisServer, store: RedisStreamStore
) -> list[StreamPosition]:
    """Append two messages, make the primary copy the replica's data, and promote the primary again.

    The replica lacks the second message. No process connects to the replica, so the data keep the former lineage.

    Returns:
        The positions of the messages.
    """
    given = await append(store, "1")
    await promote(replica, primary)
    given += await append(store, "2")
    await asyncio.to_thread(primary.follow, replica)
    primary.promote()
    return given


class TestLineage(RedisPair):
    async def test_no_position_is_used_twice_after_a_promotion_and_a_failback_without_a_restart(
        self,
        primary: RedisServer,
        replica: RedisServer,
        address: FaultProxy,
        make_store: MakeStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(lineage, "REOPEN_INTERVAL", 0)
        stores = [make_store(), make_store()]
        given: dict[StreamPosition, str] = {}

        async def broadcast(count: int) -> set[str]:
            epochs = set()
            for number in range(count):
                data = str(len(given))
                (position,) = await append(stores[number % 2], data)
                assert given.setdefault(position, data) == data
                epochs.add(position.epoch)
            return epochs

        first = await broadcast(4)
        await promote(replica, primary)
        await broadcast(4)  # to the old primary, which has not noticed the promotion
        await asyncio.to_thread(primary.follow, replica)
        address.move(replica.port)
        second = await broadcast(4)
        await asyncio.to_thread(fail_over, address, replica, primary)
        third = await broadcast(4)
        assert [len(first), len(second), len(third)] == [1, 1, 1]
        assert len(first | second | third) == 3
        assert len(given) == 16

    async def test_a_promoted_server_without_writes_begins_new_epochs(
        self, primary: RedisServer, replica: RedisServer, make_store: MakeStore
    ) -> None:
        (before,) = await append(make_store(primary.port), "1")
        primary.cli("REPLICAOF", "127.0.0.1", replica.port)
        primary.promote()
        (after,) = await append(make_store(primary.port), "2")
        assert (after.offset, after.epoch != before.epoch) == (1, True)

    async def test_data_that_return_begin_new_epochs(
        self, primary: RedisServer, replica: RedisServer, address: FaultProxy, make_store: MakeStore
    ) -> None:
        # The proxy forwards to the replica for a while, and then to the old primary again. The old primary does not
        # notice, because no client is connected to it meanwhile.
        store = make_store()
        (first,) = await append(store, "1")
        replica.promote()
        address.move(replica.port)
        address.cut()
        (second,) = await append(store, "2")
        address.move(primary.port)
        address.cut()
        (third,) = await append(store, "3")
        assert len({first.epoch, second.epoch, third.epoch}) == 3
        assert await append(make_store(), "4") == [StreamPosition(third.epoch, 2)], "everyone agrees"

    async def test_data_that_were_replaced_under_an_open_connection_begin_new_epochs(
        self, primary: RedisServer, replica: RedisServer, make_store: MakeStore
    ) -> None:
        # The server was demoted, got the data of the other server, and was promoted again, while nothing was sent.
        store = make_store(primary.port)
        (first,) = await append(store, "1")
        await promote(replica, primary)
        (second,) = await append(make_store(replica.port), "2")
        await asyncio.to_thread(primary.follow, replica)
        primary.promote()
        assert await store.aposition("a") == StreamPosition("", 0)
        (third,) = await append(store, "3")
        assert len({first.epoch, second.epoch, third.epoch}) == 3
        assert await append(make_store(primary.port), "4") == [StreamPosition(third.epoch, 2)]

    async def test_older_data_under_an_open_connection_begin_new_epochs(
        self, primary: RedisServer, replica: RedisServer, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lineage, "CHECK_INTERVAL", 0)
        store = make_store(primary.port)
        given = await return_to_older_data(primary, replica, store)
        given += await append(store, "3")
        assert [position.offset for position in given] == [1, 2, 1]
        assert len(set(given)) == 3, "no position is used twice"
        assert await append(make_store(primary.port), "4") == [StreamPosition(given[-1].epoch, 2)]

    async def test_a_read_of_older_data_under_an_open_connection_finds_no_stream(
        self, primary: RedisServer, replica: RedisServer, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lineage, "CHECK_INTERVAL", 0)
        store = make_store(primary.port)
        await return_to_older_data(primary, replica, store)
        assert (await store.aread("a", after=0, limit=10)).epoch == ""

    async def test_older_data_while_a_connection_opens_begin_new_epochs(
        self, primary: RedisServer, replica: RedisServer, make_store: MakeStore
    ) -> None:
        before, store = make_store(primary.port), make_store(primary.port)
        given = await append(before, "1")
        await asyncio.to_thread(primary.wait_for_replicas)
        connection = single_client(store).new_connection()
        # Pause the opening of the connection after the reply to INFO: the server delays the lineage script.
        primary.cli("CLIENT", "PAUSE", 60_000, "WRITE")
        opening = asyncio.create_task(connection.connect())
        await until(lambda: "cmd=eval " in primary.cli("CLIENT", "LIST"))
        replica.promote()
        primary.cli("REPLICAOF", "127.0.0.1", replica.port)
        await until(lambda: primary.cli("INFO", "replication")["master_link_status"] == "up")
        primary.promote()
        primary.cli("CLIENT", "UNPAUSE")
        await opening
        await connection.disconnect()
        identity = single_client(before).lineage.identity
        assert identity is not None
        assert connection.identity.lineage != identity.lineage
        given += await append(store, "2")
        assert [position.offset for position in given] == [1, 1]
        assert await append(make_store(primary.port), "3") == [StreamPosition(given[-1].epoch, 2)], "one epoch began"

    async def test_a_refused_command_while_a_connection_opens_begins_no_second_epoch(
        self, primary: RedisServer, replica: RedisServer, address: FaultProxy, make_store: MakeStore
    ) -> None:
        store = make_store()
        await append(store, "1")
        await asyncio.to_thread(fail_over, address, primary, replica)
        # After the failover, there is a new lineage. A second connection requests it, and the server delays the reply.
        replica.cli("CLIENT", "PAUSE", 60_000, "WRITE")
        second = single_client(store).new_connection()
        opening = asyncio.create_task(second.connect())
        await until(lambda: "cmd=eval" in replica.cli("CLIENT", "LIST"))
        # The old primary refuses a command on the first connection.
        address.refuse()
        with pytest.raises(BroadcastError):
            await append(store, "refused")
        address.accept()
        replica.cli("CLIENT", "UNPAUSE")
        await opening
        await second.disconnect()
        (first,) = await append(make_store(), "2")
        assert await append(store, "3") == [StreamPosition(first.epoch, 2)]

    async def test_presence_ends_with_the_lineage(
        self, primary: RedisServer, replica: RedisServer, address: FaultProxy, made_stores: list[Any]
    ) -> None:
        presence = RedisPresenceStore(CableSettings(redis_url=f"redis://127.0.0.1:{address.port}/0"))
        made_stores.append(presence)
        await presence.ajoin_all([Member("a", "session", "me", {})])
        before = (await presence.ainfo("a")).incarnation
        await asyncio.to_thread(fail_over, address, primary, replica)
        after = (await presence.arefresh({"a": ["session"]})).incarnations["a"]
        assert len({before, after, ""}) == 3

    async def test_replicas_that_connect_and_disconnect_end_no_epoch(
        self, primary: RedisServer, make_store: MakeStore, tmp_path: Path
    ) -> None:
        store = make_store()
        (first,) = await append(store, "1")
        replid = primary.cli("INFO", "replication")["master_replid"]
        primary.cli("CONFIG", "SET", "repl-backlog-ttl", "1")
        with RedisServer(tmp_path / "late", primary.binary) as late:
            await asyncio.to_thread(late.follow, primary)
            attached = primary.cli("INFO", "replication")["master_replid"]
            assert attached != replid
            assert await append(make_store(), "2") == [StreamPosition(first.epoch, 2)]
        await until(lambda: primary.cli("INFO", "replication")["master_replid"] != attached)
        assert await append(make_store(), "3") == [StreamPosition(first.epoch, 3)]
        assert await append(store, "4") == [StreamPosition(first.epoch, 4)]

    async def test_a_server_of_the_previous_release_agrees_about_the_epochs(
        self, primary: RedisServer, make_store: MakeStore
    ) -> None:
        # The previous release binds epochs to the run_id, has no lineage record, and adds entries with fewer fields.
        store = make_store()
        meta, log, _ = store.keys("a")
        run_id = primary.cli("INFO", "server")["run_id"]
        now = f"{await store.atime():.6f}"
        primary.cli("HSET", meta, "n", "a", "e", "old", "t", 1, "r", run_id, "a", now, "z", "", "k", "")
        primary.cli("XADD", log, "1-0", "d", "1", "c", now, "x", "", "u", "0.1")
        assert await append(store, "2") == [StreamPosition("old", 2)]
        assert primary.cli("HGET", meta, "r") == run_id
        page = await store.aread("a", after=0, limit=10)
        assert [(entry.offset, entry.data) for entry in page.entries] == [(1, "1"), (2, "2")]

    async def test_all_epochs_end_at_once(
        self, primary: RedisServer, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, other = make_store(), make_store()
        heard: list[StreamEvent] = []
        listener = other.listen(heard.append)
        await listener.subscribe("a")
        await other.aappend([("a", Message("1")), ("b", Message("1"))])
        await until(lambda: heard)
        heard.clear()
        before = await other.aposition("a")
        assert await asyncio.to_thread(store.forget_all) == 2
        assert await store.tails(["a", "b"]) == {"a": StreamPosition("", 0), "b": StreamPosition("", 0)}
        await listener.check()
        assert heard == [Advanced("a")]
        assert (await other.aread("a", after=0, limit=10)).epoch == ""
        (after,) = await append(other, "2")
        assert (after.offset, after.epoch != before.epoch) == (1, True)
        await listener.close()

    async def test_data_that_move_again_at_once_refuse_no_broadcast(
        self, primary: RedisServer, make_store: MakeStore
    ) -> None:
        store, other = make_store(), make_store()
        epochs = [(await append(store, "0"))[0].epoch]
        for number in range(5):
            await asyncio.to_thread(other.forget_all)
            epochs += [position.epoch for position in await append(store, str(number))]
        assert len(set(epochs)) == 6

    async def test_the_lineage_record_is_written_only_after_a_change(
        self, primary: RedisServer, make_store: MakeStore
    ) -> None:
        await append(make_store(), "1")
        primary.cli("CONFIG", "RESETSTAT")
        await make_store().client.arun(Call("PING"))
        assert not {"cmdstat_hset", "cmdstat_expire"} & set(primary.cli("INFO", "commandstats"))


class TestFence(RedisPair):
    async def test_a_fence_waits_for_all_earlier_messages(self, make_store: MakeStore) -> None:
        store = make_store()
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await append(store, *map(str, range(300)))
        await listener.fence()
        assert len(heard) == 300
        await listener.close()

    async def test_a_fence_returns_when_the_connection_is_lost(
        self, address: FaultProxy, make_store: MakeStore
    ) -> None:
        listener = make_store().listen(lambda event: None)
        await listener.subscribe("a")
        address.stall()
        fence = asyncio.create_task(listener.fence())
        await asyncio.sleep(0)
        assert not fence.done()
        address.cut()
        await fence
        address.resume()
        await listener.close()

    async def test_a_fence_closes_a_connection_that_does_not_respond(
        self, address: FaultProxy, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("reliable_cable.stores.redis.pubsub.FENCE_TIMEOUT", 0.1)
        heard: list[StreamEvent] = []
        listener = make_store().listen(heard.append)
        await listener.subscribe("a")
        address.stall()
        await listener.fence()
        address.resume()
        await until(lambda: heard)
        assert heard == [Advanced("a")], "what was on its way is to be read"
        await listener.close()

    async def test_a_fence_without_a_connection_returns_at_once(
        self, primary: RedisServer, make_store: MakeStore
    ) -> None:
        listener = make_store().listen(lambda event: None)
        await listener.fence()
        await listener.close()
