"""Presence over several servers and one Redis, whatever happens to either (PROTOCOL.md, 14)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.client import Client, Frame, identify, unique
from tests.support.redis import RedisServer
from tests.support.server import OtherProcess, Server, ServerPool

pytestmark = pytest.mark.redis

TTL = 1.5
PATIENCE = 20.0
Pair = tuple[Server, Server]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that the tests may stop."""
    with RedisServer(tmp_path_factory.mktemp("presence") / "redis") as server:
        yield server


@pytest.fixture(scope="module")
def started(redis: RedisServer, pools: dict[str, ServerPool]) -> Iterator[Pair]:
    """Two servers on that Redis."""
    options: dict[str, Any] = {"REDIS_URL": redis.url, "PRESENCE_TTL": TTL}
    make = pools["database"].make
    with make("daphne", **options) as one, make("uvicorn", **options) as two:
        yield one, two


@pytest.fixture
async def pair(started: Pair, redis: RedisServer) -> AsyncIterator[Pair]:
    """Both servers and the Redis, running; a test may stop them."""
    await signals("", *started)
    yield started
    if not redis.alive:
        redis.start()
    for server in started:
        if not server.alive:
            await server.restart()


class Watcher:
    """A client that keeps a list of who is in a room, as the npm client does, and the events that it heard."""

    def __init__(self, client: Client, room: str) -> None:
        self.client = client
        self.identifier = identify("RoomChannel", room=room)
        self.believed: dict[str, Any] = {}
        self.events: list[tuple[str, str]] = []
        self.frames: list[Frame] = []

    async def enter(self, id_: str | None = None) -> None:
        """Subscribe, join as an id, and ask who is there."""
        presence = {"presence": {"id": id_, "info": {}}} if id_ else {}
        await self.client.subscribe(self.identifier, **presence)
        await self.client.send("presence", self.identifier)
        self._take(await self.client.until(lambda frame: frame.get("message", {}).get("type") == "info"))

    async def believes(self, *ids: str) -> None:
        """Wait until it believes that these and no others are there."""
        async with asyncio.timeout(PATIENCE):
            while set(self.believed) != set(ids):
                self._take([await self.client.next(PATIENCE)])

    async def catch_up(self) -> None:
        """Take what has come."""
        self._take(await self.client.barrier())

    def _take(self, frames: list[Frame]) -> None:
        self.frames += frames
        for message in [frame["message"] for frame in frames if frame.get("type") == "presence"]:
            if message["type"] == "info":
                self.believed = {record["id"]: record["info"] for record in message["records"]}
                continue
            self.events.append((message["type"], message["id"]))
            if message["type"] == "join":
                self.believed[message["id"]] = message["info"]
            else:
                self.believed.pop(message["id"], None)


Watch = Callable[..., Awaitable[Watcher]]


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    """Connect a watcher to a server."""
    async with AsyncExitStack() as stack:

        async def watch(server: Server, room: str, id_: str | None = None) -> Watcher:
            watcher = Watcher(await stack.enter_async_context(Client(server.url)), room)
            await watcher.enter(id_)
            return watcher

        yield watch


async def signals(room: str, *servers: Server | OtherProcess) -> list[tuple[str, str]]:
    """Return the signals about a room that servers were sent."""
    return [tuple(each) for server in servers for each in await server.call("presence_signals", room)]


async def test_everyone_hears_once_who_comes_and_leaves_and_one_server_signals_it(pair: Pair, watch: Watch) -> None:
    one, two = pair
    room = unique("room")
    watchers = [await watch(server, room) for server in (one, two, two)]
    phone, desk = await watch(one, room, "ann"), await watch(two, room, "ann")
    await phone.client.send("leave", phone.identifier)
    await phone.client.barrier()
    assert await one.call("who_is_there", room) == await two.call("who_is_there", room) == {"ann": {}}
    await desk.client.send("unsubscribe", desk.identifier)
    for watcher in watchers:
        await watcher.believes("ann")
        await watcher.believes()
        await watcher.catch_up()
        assert watcher.events == [("join", "ann"), ("leave", "ann")]
    async with asyncio.timeout(PATIENCE):
        while len(got := await signals(room, *pair)) < 2:
            pass
    assert sorted(got) == [("join", "ann"), ("leave", "ann")]


async def test_members_of_a_server_that_was_killed_leave_once_unless_they_are_elsewhere_too(
    pair: Pair, watch: Watch
) -> None:
    one, two = pair
    room = unique("room")
    watchers = [await watch(two, room), await watch(two, room)]
    await watch(one, room, "gone")
    await watch(one, room, "both")
    await watch(two, room, "both")
    for watcher in watchers:
        await watcher.believes("gone", "both")
    one.kill()
    for watcher in watchers:
        await watcher.believes("both")
    await one.restart()
    await asyncio.sleep(TTL)  # by when a second leave would have come
    for watcher in watchers:
        await watcher.catch_up()
        assert watcher.events.count(("leave", "gone")) == 1
        assert ("leave", "both") not in watcher.events
    # The receivers of the one that was killed cannot be asked any more.
    assert [signal for signal in await signals(room, two) if signal[0] == "leave"] == [("leave", "gone")]


@pytest.mark.parametrize("loss", ["flushall", "restart", "restart_empty"])
async def test_a_redis_that_loses_its_data_makes_nobody_leave_who_is_there(
    pair: Pair, watch: Watch, redis: RedisServer, loss: str
) -> None:
    one, two = pair
    room = unique("room")
    watchers = [await watch(one, room, "ann"), await watch(two, room, "bob")]
    for watcher in watchers:
        await watcher.believes("ann", "bob")
    getattr(redis, loss)()
    newcomer = await watch(two, room, "eve")
    for watcher in [*watchers, newcomer]:
        await watcher.believes("ann", "bob", "eve")
    await asyncio.sleep(2 * TTL)  # the time for which who is missing might come back, and one more
    for watcher in [*watchers, newcomer]:
        await watcher.catch_up()
        assert set(watcher.believed) == {"ann", "bob", "eve"}
        assert not [event for event in watcher.events if event[0] == "leave"]
    assert await one.call("who_is_there", room) == {"ann": {}, "bob": {}, "eve": {}}
    assert sorted(await signals(room, *pair)) == [("join", "ann"), ("join", "bob"), ("join", "eve")]


async def test_who_leaves_while_redis_loses_its_data_is_gone_everywhere(
    pair: Pair, watch: Watch, redis: RedisServer
) -> None:
    one, two = pair
    room = unique("room")
    watcher, stays = await watch(two, room), await watch(two, room, "bob")
    await watch(one, room, "ann")
    await watcher.believes("ann", "bob")
    one.kill()
    redis.restart_empty()
    await watcher.believes("bob")
    await stays.catch_up()
    assert ("leave", "bob") not in watcher.events + stays.events


async def test_lists_become_right_after_the_announcements_were_cut_off(
    pair: Pair, watch: Watch, redis: RedisServer
) -> None:
    one, two = pair
    room = unique("room")
    watcher, leaves = await watch(one, room), await watch(two, room, "ann")
    await watcher.believes("ann")
    for _ in range(5):
        redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
        await leaves.client.send("leave", leaves.identifier)
        redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
        await watcher.believes()
        await leaves.client.send("join", leaves.identifier, presence={"id": "ann", "info": {}})
        await watcher.believes("ann")


async def test_whoever_comes_while_redis_is_away_is_there_when_it_is_back(
    pair: Pair, watch: Watch, redis: RedisServer
) -> None:
    one, two = pair
    room = unique("room")
    watcher, comes = await watch(one, room), await watch(two, room)
    redis.kill()
    await comes.client.send("join", comes.identifier, presence={"id": "ann", "info": {"name": "Ann"}})
    await comes.client.send("presence", comes.identifier)
    await comes.client.until(lambda frame: frame.get("message") == {"type": "error"})
    redis.start()
    await watcher.believes("ann")
    await comes.believes("ann")
    assert watcher.believed == {"ann": {"name": "Ann"}}


async def sessions_are_kept(one: Server, other: Server) -> None:
    """Wait until a session that left one server is restored on the other one: Redis may have been away just before."""
    async with asyncio.timeout(PATIENCE):
        while True:
            async with Client(one.url) as client:
                await client.cut()
            async with Client(other.url, sid=client.sid) as back:
                if "restored" in back.welcome:
                    return


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("place", [0, 1])
async def test_a_restored_list_becomes_right_on_any_server_or_starts_afresh_if_the_data_were_lost(
    pair: Pair, watch: Watch, redis: RedisServer, lost: bool, place: int
) -> None:
    one, two = pair
    await sessions_are_kept(one, two)
    await sessions_are_kept(two, one)
    room = unique("room")
    former, leaves = await watch(one, room, "ann"), await watch(two, room, "bob")
    await former.believes("ann", "bob")
    await former.client.cut()
    await leaves.client.send("unsubscribe", leaves.identifier)
    await leaves.client.barrier()
    if lost:
        # The sessions are in the same Redis.
        for key in redis.cli("KEYS", "*:presence"):
            redis.cli("DEL", key)
    async with Client(pair[place].url, sid=former.client.sid) as client:
        assert client.welcome["restored"] is True
        assert client.welcome["restored_ids"] == ([] if lost else [former.identifier])
        if not lost:
            back = Watcher(client, room)
            back.believed = former.believed
            await client.send("history", former.identifier, history={"streams": {}})
            await back.believes("ann")
