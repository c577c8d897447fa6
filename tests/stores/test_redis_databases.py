"""Several databases of one Redis server, whose pub/sub channels are common to all of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis.asyncio

from reliable_cable.conf import CableSettings
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.presence.base import Member, PresenceEvent
from reliable_cable.stores.presence.redis import RedisPresenceStore
from reliable_cable.stores.streams import redis_listener
from reliable_cable.stores.streams.base import Advanced, Message, Published, Transient
from reliable_cable.stores.streams.redis import RedisStreamStore
from reliable_cable.stores.streams.redis_listener import parse_event
from tests.stores.conftest import until
from tests.support.redis import RedisServer

pytestmark = pytest.mark.redis

Stores = tuple[RedisStreamStore, RedisPresenceStore]
MakeStores = Callable[..., Stores]
Listen = Callable[[Stores], Awaitable[list[Any]]]

END = Transient("a", "end")


@pytest.fixture(autouse=True)
def _no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the listeners from checking positions regularly, so that they announce only the events that they receive."""
    monkeypatch.setattr(redis_listener, "CHECK_INTERVAL", 3600.0)


@pytest.fixture
def make_stores(redis_server: RedisServer, key_prefix: str, made_stores: list[Any]) -> Iterator[MakeStores]:
    """Return a function that makes two stores in a database of the server. Each pair acts as a separate process."""

    def make(database: int = 0, **options: Any) -> Stores:
        url = f"redis://127.0.0.1:{redis_server.port}/{database}"
        settings = CableSettings(redis_url=url, key_prefix=key_prefix, **options)
        stores = RedisStreamStore(settings), RedisPresenceStore(settings)
        made_stores.extend(stores)
        return stores

    yield make
    for store in made_stores:
        store.close()


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """Return a function that returns a list, to which the events of the stream `a` are added."""
    listeners: list[Any] = []

    async def start(stores: Stores) -> list[Any]:
        events: list[Any] = []
        for store in stores:
            listener = store.listen(events.append)
            listeners.append(listener)
            await listener.subscribe("a")
        return events

    yield start
    for listener in listeners:
        await listener.close()


async def publish_every_kind(stores: Stores) -> list[Any]:
    """Publish an event of each kind to the stream `a`, and return the events."""
    streams, presence = stores
    (position,) = await streams.aappend([("a", Message('{"n":1}', exclude="sid"))])
    await streams.apublish_transient("a", Message('{"n":2}'))
    joined = await presence.ajoin_all([Member("a", "session", "ann", {"name": "Ann"}, False)])
    left = await presence.aleave("a", "session")
    await streams.aforget("a")
    published = Published("a", position.epoch, Entry(1, '{"n":1}', "sid"))
    return [published, Transient("a", '{"n":2}'), *joined, *left, Advanced("a")]


async def test_the_processes_of_one_database_hear_each_event_once(make_stores: MakeStores, listen: Listen) -> None:
    heard = await listen(make_stores(3))
    events = await publish_every_kind(make_stores(3))
    await make_stores(3)[0].apublish_transient("a", Message("end"))
    await until(lambda: END in heard)
    assert heard == [*events, END]


@pytest.mark.parametrize("options", [{}, {"redis_options": {"db": 4}}])
async def test_the_processes_of_two_databases_do_not_hear_each_other(
    make_stores: MakeStores, listen: Listen, options: dict[str, Any]
) -> None:
    heard, others = await listen(make_stores(3)), await listen(make_stores(4, **options))
    events = await publish_every_kind(make_stores(4))
    await make_stores(3)[0].apublish_transient("a", Message("end"))
    await until(lambda: END in heard)
    assert heard == [END]
    assert others == events


class TestTheFormerNameOfAChannel:
    """A rolling upgrade: the previous release publishes and subscribes to names without the number of the database."""

    @pytest.fixture
    async def former(self, redis_server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
        """The connection of a process of the previous release."""
        async with redis.asyncio.Redis(port=redis_server.port, db=3) as client:
            yield client

    @pytest.fixture
    def former_name(self, key_prefix: str) -> str:
        return f"{key_prefix}:stream:a"

    async def test_the_previous_release_hears_each_event_once(
        self, make_stores: MakeStores, listen: Listen, former: redis.asyncio.Redis, former_name: str
    ) -> None:
        await listen(make_stores(3))
        async with former.pubsub() as pubsub:
            await pubsub.subscribe(former_name)
            messages = pubsub.listen()
            assert (await anext(messages))["type"] == "subscribe"
            published, transient, joined, left, advanced = await publish_every_kind(make_stores(3))
            received = [(await anext(messages))["data"] for _ in range(5)]
        assert parse_event("a", received[0]) == Published(
            "a", published.epoch, Entry(1, published.entry.data + " ", "sid")
        )
        assert parse_event("a", received[1]) == Transient("a", transient.data + " ")
        assert [message[:1] for message in received[2:4]] == [b"j", b"l"]
        for message, event in zip(received[2:4], (joined, left), strict=True):
            assert json.loads(message[1:]) == {"id": event.id, "info": event.info}
        assert parse_event("a", received[4]) == advanced

    async def test_this_release_hears_the_previous_release(
        self, make_stores: MakeStores, listen: Listen, former: redis.asyncio.Redis, former_name: str
    ) -> None:
        heard = await listen(make_stores(3))
        await former.publish(former_name, 'mepoch 1 sid\n{"n":1}')
        await former.publish(former_name, 't\n{"n":2}')
        await former.publish(former_name, 'j{"id":"ann","info":null}')
        await until(lambda: len(heard) >= 3)
        assert heard == [
            Published("a", "epoch", Entry(1, '{"n":1}', "sid")),
            Transient("a", '{"n":2}'),
            PresenceEvent("a", "join", "ann", None),
        ]

    async def test_this_release_hears_each_event_once_while_the_previous_release_listens(
        self, make_stores: MakeStores, listen: Listen, former: redis.asyncio.Redis, former_name: str
    ) -> None:
        heard = await listen(make_stores(3))
        async with former.pubsub() as pubsub:
            await pubsub.subscribe(former_name)
            await pubsub.get_message(timeout=10)
            events = await publish_every_kind(make_stores(3))
            await former.publish(former_name, "t\nend")
            await until(lambda: END in heard)
        assert heard == [*events, END]

    async def test_no_copies_are_published_when_the_previous_release_does_not_listen(
        self, make_stores: MakeStores, listen: Listen, redis_server: RedisServer
    ) -> None:
        await listen(make_stores(3))
        store = make_stores(3)[0]
        await store.aappend([("a", Message("0"))])
        redis_server.cli("CONFIG", "RESETSTAT")
        await store.aappend([("a", Message("1")), ("a", Message("2"))])
        assert redis_server.cli("INFO", "commandstats")["cmdstat_publish"]["calls"] == 2
