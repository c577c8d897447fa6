"""Stores find the primary through Redis Sentinels, and a failover begins a new epoch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError
from reliable_cable.stores.redis.listening import pubsub_of
from reliable_cable.stores.streams.base import Advanced, Published, StreamEvent
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.conftest import until
from tests.stores.writers import append, check_history, writing
from tests.support.redis_cluster import cluster_binary
from tests.support.redis_sentinel import SERVICE, RedisSentinels
from tests.support.server import free_port

pytestmark = pytest.mark.redis

MakeStore = Callable[..., RedisStreamStore]


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSentinels]:
    """A primary and a replica with three Sentinels."""
    with RedisSentinels(tmp_path_factory.mktemp("sentinels"), cluster_binary()) as started:
        yield started


@pytest.fixture
def make_store(sentinels: RedisSentinels, key_prefix: str, made_stores: list[Any]) -> MakeStore:
    """A function that makes stores, which act like the stores of separate processes."""

    def make(url: str = "", **settings: Any) -> RedisStreamStore:
        store = RedisStreamStore(CableSettings(redis_url=url or sentinels.url, key_prefix=key_prefix, **settings))
        made_stores.append(store)
        return store

    return make


@pytest.mark.parametrize("how", ["failover", "kill"])
async def test_a_failover_under_load_loses_nothing_of_the_newest_epoch(
    sentinels: RedisSentinels, make_store: MakeStore, how: str
) -> None:
    await asyncio.to_thread(sentinels.wait_until_whole)
    store, heard = make_store(history_size=100_000), list[StreamEvent]()
    listener = make_store().listen(heard.append)
    await listener.subscribe("a")
    async with writing(store, "a") as writer:
        primary = await asyncio.to_thread(sentinels.primary)
        if how == "failover":
            await asyncio.to_thread(sentinels.fail_over)
        else:
            primary.kill()
            await asyncio.to_thread(sentinels.wait_for_another, primary)
            await asyncio.to_thread(primary.start)
        await until(lambda: len(writer.epochs) >= 2)
    await check_history(store, "a", writer)
    await until(lambda: Advanced("a") in heard)
    await until(lambda: pubsub_of(listener._client).connected)
    await asyncio.to_thread(sentinels.wait_until_whole)
    heard.clear()
    last = await append(store, "a", '"last"')
    await until(lambda: any(event == Advanced("a") or getattr(event, "position", None) == last for event in heard))
    assert not any(isinstance(event, Published) and event.position != last for event in heard)
    await listener.close()


async def test_sync_code_and_other_sentinels_find_the_primary_while_one_is_down(
    sentinels: RedisSentinels, make_store: MakeStore
) -> None:
    dead = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinels.sentinels[1].port}/{SERVICE}"
    store = make_store(dead)
    before = await append(store, "a", "1")
    after = await asyncio.to_thread(store.position, "a")
    assert after == before
    assert f"service {SERVICE}" in store.place
    assert store.problems() == []


async def test_without_sentinels_nothing_is_broadcast(make_store: MakeStore) -> None:
    store = make_store(f"redis+sentinel://127.0.0.1:{free_port()}/{SERVICE}")
    with pytest.raises(BroadcastError, match=r"Nothing was broadcast.*cannot be reached or know no primary"):
        await append(store, "a", "1")


async def test_an_unknown_service_has_no_primary(sentinels: RedisSentinels, make_store: MakeStore) -> None:
    store = make_store(sentinels.url.replace(SERVICE, "unknown"))
    with pytest.raises(
        BroadcastError, match=r"service unknown, .*know no primary \(127.*: knows the services cable-test"
    ):
        await append(store, "a", "1")
