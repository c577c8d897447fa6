"""On every engine, streams that one event loop opens at the same time are opened with few queries or round trips."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.db.backends.utils import CursorWrapper

from reliable_cable.conf import read_settings
from reliable_cable.connection.account import Account
from reliable_cable.connection.outbox import Outbox
from reliable_cable.exceptions import StoreError
from reliable_cable.hub.hub import Hub
from reliable_cable.stores.engine import Engine
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.redis.client import RedisClient
from reliable_cable.stores.redis.pubsub import PubSub
from reliable_cable.stores.sessions.memory import MemorySessionStore
from reliable_cable.stores.streams import redis_listener
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.model import NAMES_PER_QUERY, ModelStreamStore
from tests.support.subscriber import LoneSubscriber

from .conftest import EVERY_STORE, MODEL_STORES, SINGLE_REDIS_STORES, MakeStore, finish_store_threads, until

NAMES = [f"stream {number}" for number in range(800)]


@pytest.fixture
async def hub(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    """A hub whose store does not poll during the test, and does not check positions."""
    monkeypatch.setattr(redis_listener, "CHECK_INTERVAL", 3600)
    settings = read_settings({"ENGINE": "memory"})
    store = make_store(poll_interval=60, notify=False)
    hub = Hub(Engine(store, MemoryPresenceStore(settings), MemorySessionStore(settings)), settings)
    await subscribe(hub, "the first stream")
    yield hub
    await hub.aclose()
    finish_store_threads()


async def subscribe(hub: Hub, name: str) -> LoneSubscriber:
    async def send(message: dict[str, Any]) -> None: ...

    outbox = Outbox(send, account=Account(10**6), overflow=lambda: None)
    subscriber = LoneSubscriber(outbox, "I", name, ())
    await subscriber.join(hub, name)
    return subscriber


async def subscribe_all(hub: Hub) -> list[LoneSubscriber]:
    async with asyncio.timeout(60):
        return await asyncio.gather(*(subscribe(hub, name) for name in NAMES))


@pytest.mark.parametrize("alias", EVERY_STORE, indirect=True)
class TestManyStreams:
    async def test_each_subscriber_begins_at_the_end_of_its_stream(self, hub: Hub) -> None:
        store = hub.engine.streams
        (position,) = await store.aappend([(NAMES[7], Message("1"))])
        subscribers = await subscribe_all(hub)
        assert [each.cursor.offset for each in subscribers] == [int(name == NAMES[7]) for name in NAMES]
        assert subscribers[7].cursor == position

    async def test_all_of_them_are_announced(self, hub: Hub) -> None:
        subscribers = await subscribe_all(hub)
        await hub.engine.streams.aappend_parts([(name, Message("1")) for name in (NAMES[0], NAMES[-1])])
        await until(lambda: subscribers[0].stream.position.offset == subscribers[-1].stream.position.offset == 1)


@pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
class TestModelStore:
    async def test_the_number_of_queries(self, hub: Hub, alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
        lineages = int(alias == "postgres")  # one query reads the lineage, which an SQLite database does not have
        queries: list[str] = []
        execute = CursorWrapper.execute

        def counted(cursor: Any, sql: str, params: Any = None) -> Any:
            queries.append(sql)
            return execute(cursor, sql, params)

        monkeypatch.setattr(CursorWrapper, "execute", counted)
        await subscribe(hub, "another stream")
        assert len(queries) == 2 + lineages, "the listener and the hub each read the position"
        queries.clear()
        await subscribe_all(hub)
        assert len(queries) == 2 * -(-len(NAMES) // NAMES_PER_QUERY) + lineages

    async def test_no_stream_is_subscribed_to_if_the_query_fails(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(store: ModelStreamStore, names: Any) -> Any:
            raise StoreError("down")

        store = make_store()
        listener = store.listen(lambda event: None)
        await listener.subscribe("a")
        monkeypatch.setattr(ModelStreamStore, "_tails", fail)
        with pytest.raises(StoreError):
            await listener.subscribe_many(["a", "b", "c"])
        assert listener.streams == {"a"}
        await listener.close()


@pytest.mark.parametrize("alias", SINGLE_REDIS_STORES, indirect=True)
class TestRedisStore:
    async def test_the_number_of_round_trips(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        trips: list[str] = []
        for cls, name in ((RedisClient, "_aattempt"), (PubSub, "_send_some")):
            method = getattr(cls, name)

            async def counted(self: Any, *args: Any, method: Any = method, name: str = name) -> Any:
                trips.append(name)
                return await method(self, *args)

            monkeypatch.setattr(cls, name, counted)
        await subscribe_all(hub)
        assert sorted(trips) == ["_aattempt"] * 2 + ["_send_some"] * 2
