"""Presence on two servers with one store, and faults of both (see Protocol: Presence)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.client import Client, Frame, identify, unique
from tests.support.presence_backends import BACKENDS, PresenceBackend, RedisBackend
from tests.support.server import OtherProcess, Server

REDIS = pytest.param("redis", marks=pytest.mark.redis)
POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)
on_every_store = pytest.mark.parametrize("backend", [REDIS, "sqlite", POSTGRES], indirect=True)
CLUSTER = pytest.param("cluster", marks=[pytest.mark.redis, pytest.mark.other_combination])
on_every_store_and_cluster = pytest.mark.parametrize("backend", [REDIS, "sqlite", POSTGRES, CLUSTER], indirect=True)
on_every_server = pytest.mark.parametrize("backend", [REDIS, POSTGRES], indirect=True)

#: The `PRESENCE_TTL` of the servers, in seconds.
TTL = 1.5
#: How long, in seconds, to wait for a presence event.
TIMEOUT = 30.0
Pair = tuple[Server, Server]


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PresenceBackend]:
    """A store that the tests may stop."""
    backend = BACKENDS[request.param](tmp_path_factory.mktemp("presence"))
    with backend.running():
        yield backend


@pytest.fixture(scope="module")
def started(backend: PresenceBackend) -> Iterator[Pair]:
    """Two servers with this store."""
    with backend.make("daphne", PRESENCE_TTL=TTL) as one, backend.make("uvicorn", PRESENCE_TTL=TTL) as two:
        yield one, two


@pytest.fixture
async def pair(started: Pair, backend: PresenceBackend) -> AsyncIterator[Pair]:
    """Both servers. A test may stop them and the store, and all are started again after the test."""
    await signals("", *started)
    yield started
    if not backend.alive:
        backend.start()
    for server in started:
        if not server.alive:
            await server.restart()


@pytest.fixture
def room() -> str:
    """The name of a room that no other test uses."""
    return unique("room")


async def restored(stack: AsyncExitStack, server: Server, sid: str) -> Client:
    """Connect until a session is restored, and return the client. A busy server may not load a record in time."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            client = await stack.enter_async_context(Client(server.url, sid=sid))
            if "restored" in client.welcome:
                return client


class Watcher:
    """A client that keeps a member list of a room, as the npm client does, and records presence events."""

    def __init__(self, client: Client, room: str) -> None:
        self.client = client
        self.identifier = identify("RoomChannel", room=room)
        self.members: dict[str, Any] = {}
        self.events: list[tuple[str, str]] = []
        self.frames: list[Frame] = []

    async def enter(self, id_: str | None = None) -> None:
        """Subscribe, join with an id if one is given, and request the members."""
        await self.client.subscribe(self.identifier)
        if id_:
            # If the subscribe carried the join, the server might answer the next command before the join is stored.
            await self.client.send("join", self.identifier, presence={"id": id_, "info": {}})
        await self.client.send("presence", self.identifier)
        self._process(await self.client.until(lambda frame: frame.get("message", {}).get("type") == "info"))

    async def wait_for_members(self, *ids: str) -> None:
        """Wait until the member list has exactly these ids."""
        async with asyncio.timeout(TIMEOUT):
            while set(self.members) != set(ids):
                self._process([await self.client.next(TIMEOUT)])

    async def read_all(self) -> None:
        """Process all messages that have arrived."""
        self._process(await self.client.barrier())

    def _process(self, frames: list[Frame]) -> None:
        self.frames += frames
        for message in [frame["message"] for frame in frames if frame.get("type") == "presence"]:
            if message["type"] == "info":
                self.members = {record["id"]: record["info"] for record in message["records"]}
                continue
            self.events.append((message["type"], message["id"]))
            if message["type"] == "join":
                self.members[message["id"]] = message["info"]
            else:
                self.members.pop(message["id"], None)


Watch = Callable[..., Awaitable[Watcher]]


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    """Return a function that connects a watcher to a server, and makes it enter a room."""
    async with AsyncExitStack() as stack:

        async def watch(server: Server, room: str, id_: str | None = None) -> Watcher:
            watcher = Watcher(await stack.enter_async_context(Client(server.url)), room)
            await watcher.enter(id_)
            return watcher

        yield watch


async def signals(room: str, *servers: Server | OtherProcess) -> list[tuple[str, str]]:
    """Return the presence signals that these servers sent for a room."""
    return [tuple(each) for server in servers for each in await server.call("presence_signals", room)]


@on_every_store_and_cluster
async def test_each_join_and_leave_reaches_all_clients_once_and_is_signalled_by_one_server(
    pair: Pair, watch: Watch, room: str
) -> None:
    one, two = pair
    watchers = [await watch(server, room) for server in (one, two, two)]
    phone, desk = await watch(one, room, "ann"), await watch(two, room, "ann")
    await phone.client.send("leave", phone.identifier)
    await phone.client.barrier()
    assert await one.call("who_is_there", room) == await two.call("who_is_there", room) == {"ann": {}}
    await desk.client.send("unsubscribe", desk.identifier)
    for watcher in watchers:
        await watcher.wait_for_members("ann")
        await watcher.wait_for_members()
        await watcher.read_all()
        assert watcher.events == [("join", "ann"), ("leave", "ann")]
    async with asyncio.timeout(TIMEOUT):
        while len(got := await signals(room, *pair)) < 2:
            pass
    assert sorted(got) == [("join", "ann"), ("leave", "ann")]


@on_every_store
async def test_a_member_whose_page_was_closed_leaves_early_although_its_server_is_killed(
    backend: PresenceBackend, watch: Watch, room: str
) -> None:
    options: dict[str, Any] = {"PRESENCE_TTL": 9, "PRESENCE_GRACE": 1}
    audit = unique("audit")
    with backend.make("daphne", **options) as one, backend.make("uvicorn", **options) as two:
        watcher = await watch(two, room)
        page = await watch(one, room, "page closed")
        await watch(one, room, "server killed")
        await watcher.wait_for_members("page closed", "server killed")
        audited = identify("AuditedChannel", audit=audit)
        await page.client.send("subscribe", audited)
        await page.client.until({"type": "confirm_subscription", "identifier": audited})
        await page.client.close(1001)
        async with asyncio.timeout(TIMEOUT):
            while (await two.call("position", audit))["offset"] < 2:
                pass  # `unsubscribed`, which broadcasts, is called after the store has the earlier expiry
        one.kill()
        await watcher.wait_for_members("server killed")
        early = time.monotonic()
        await watcher.wait_for_members()
        # The expiries differ by at least 5 s. Without the earlier one, both members would leave at the same time.
        assert time.monotonic() - early > 2
        assert watcher.events[2:] == [("leave", "page closed"), ("leave", "server killed")]


@on_every_store_and_cluster
async def test_members_of_a_killed_server_leave_once_unless_they_are_also_on_another_server(
    pair: Pair, watch: Watch, room: str
) -> None:
    one, two = pair
    watchers = [await watch(two, room), await watch(two, room)]
    await watch(one, room, "gone")
    await watch(one, room, "both")
    await watch(two, room, "both")
    for watcher in watchers:
        await watcher.wait_for_members("gone", "both")
    one.kill()
    for watcher in watchers:
        await watcher.wait_for_members("both")
    await one.restart()
    await asyncio.sleep(TTL)  # a second leave event would arrive within this time
    for watcher in watchers:
        await watcher.read_all()
        assert watcher.events.count(("leave", "gone")) == 1
        assert ("leave", "both") not in watcher.events
    # The killed server has lost its records of signals.
    assert [signal for signal in await signals(room, two) if signal[0] == "leave"] == [("leave", "gone")]


@pytest.mark.parametrize(
    ("backend", "loss"),
    [
        pytest.param("redis", "flushall", marks=pytest.mark.redis),
        pytest.param("redis", "restart", marks=pytest.mark.redis),
        pytest.param("redis", "restart_empty", marks=pytest.mark.redis),
        pytest.param("sqlite", "tables emptied"),
        pytest.param("postgres", "crash", marks=pytest.mark.postgres),
    ],
    indirect=["backend"],
)
async def test_members_stay_when_the_store_loses_its_data(
    pair: Pair, watch: Watch, room: str, backend: PresenceBackend, loss: str
) -> None:
    one, two = pair
    watchers = [await watch(one, room, "ann"), await watch(two, room, "bob")]
    for watcher in watchers:
        await watcher.wait_for_members("ann", "bob")
    backend.lose(loss)
    newcomer = await watch(two, room, "eve")
    for watcher in [*watchers, newcomer]:
        await watcher.wait_for_members("ann", "bob", "eve")
    await asyncio.sleep(2 * TTL)  # a member that is missing in the store would leave within this time
    for watcher in [*watchers, newcomer]:
        await watcher.read_all()
        assert set(watcher.members) == {"ann", "bob", "eve"}
        assert not [event for event in watcher.events if event[0] == "leave"]
    assert await one.call("who_is_there", room) == {"ann": {}, "bob": {}, "eve": {}}
    assert sorted(await signals(room, *pair)) == [("join", "ann"), ("join", "bob"), ("join", "eve")]


@on_every_store
async def test_a_member_that_leaves_while_the_store_loses_its_data_leaves_on_all_servers(
    pair: Pair, watch: Watch, room: str, backend: PresenceBackend
) -> None:
    one, two = pair
    watcher, stays = await watch(two, room), await watch(two, room, "bob")
    await watch(one, room, "ann")
    await watcher.wait_for_members("ann", "bob")
    one.kill()
    backend.lose()
    await watcher.wait_for_members("bob")
    await stays.read_all()
    assert ("leave", "bob") not in watcher.events + stays.events


@pytest.mark.parametrize("backend", [REDIS], indirect=True)
async def test_member_lists_are_corrected_after_pubsub_connections_were_lost(
    pair: Pair, watch: Watch, room: str, backend: RedisBackend
) -> None:
    one, two = pair
    watcher, leaves = await watch(one, room), await watch(two, room, "ann")
    await watcher.wait_for_members("ann")
    for _ in range(5):
        backend.redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
        await leaves.client.send("leave", leaves.identifier)
        backend.redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
        await watcher.wait_for_members()
        await leaves.client.send("join", leaves.identifier, presence={"id": "ann", "info": {}})
        await watcher.wait_for_members("ann")


@on_every_server
async def test_a_member_that_joins_while_the_store_is_down_is_present_when_it_is_up_again(
    pair: Pair, watch: Watch, room: str, backend: PresenceBackend
) -> None:
    one, two = pair
    watcher, newcomer = await watch(one, room), await watch(two, room)
    backend.kill()
    await newcomer.client.send("join", newcomer.identifier, presence={"id": "ann", "info": {"name": "Ann"}})
    await newcomer.client.send("presence", newcomer.identifier)
    await newcomer.client.until(lambda frame: frame.get("message") == {"type": "error"})
    backend.start()
    await watcher.wait_for_members("ann")
    await newcomer.wait_for_members("ann")
    assert watcher.members == {"ann": {"name": "Ann"}}


async def wait_until_sessions_are_stored(one: Server, other: Server) -> None:
    """Wait until a server restores sessions of the other server, because the store may have been down just before."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            async with Client(one.url) as client:
                await client.cut()
            async with Client(other.url, sid=client.sid) as back:
                if "restored" in back.welcome:
                    return


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("place", [0, 1])
@on_every_store
async def test_a_restored_member_list_is_corrected_on_any_server_unless_the_store_lost_the_members(
    pair: Pair, watch: Watch, room: str, backend: PresenceBackend, lost: bool, place: int
) -> None:
    one, two = pair
    await wait_until_sessions_are_stored(one, two)
    await wait_until_sessions_are_stored(two, one)
    former, leaves = await watch(one, room, "ann"), await watch(two, room, "bob")
    await former.wait_for_members("ann", "bob")
    await former.client.cut()
    await leaves.client.send("unsubscribe", leaves.identifier)
    await leaves.client.barrier()
    if lost:
        backend.lose_presence()
    async with AsyncExitStack() as stack:
        client = await restored(stack, pair[place], former.client.sid)
        assert client.welcome["restored_ids"] == ([] if lost else [former.identifier])
        if not lost:
            back = Watcher(client, room)
            back.members = former.members
            await client.send("history", former.identifier, history={"streams": {}})
            await back.wait_for_members("ann")


#: The engine of the former version, in which each process had its own members.
FORMER = {
    "streams": "reliable_cable.stores.streams.model.ModelStreamStore",
    "presence": "reliable_cable.stores.presence.memory.MemoryPresenceStore",
    "sessions": "reliable_cable.stores.sessions.model.ModelSessionStore",
}


@pytest.mark.parametrize("place", [0, 1], ids=["upgrade", "downgrade"])
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_clients_move_between_versions_with_members_in_memory_and_in_the_database(
    backend: PresenceBackend, watch: Watch, room: str, place: int
) -> None:
    former = backend.make("daphne", PRESENCE_TTL=TTL, ENGINE=FORMER)
    new = backend.make("uvicorn", PRESENCE_TTL=TTL)
    with former, new:
        source, target = (former, new)[place], (new, former)[place]
        stays = await watch(target, room, "bob")
        moves = await watch(source, room, "ann")
        await moves.wait_for_members("ann")
        await source.terminate()
        async with AsyncExitStack() as stack:
            client = await restored(stack, target, moves.client.sid)
            assert client.welcome["restored_ids"] == [], "the list of members is requested again"
            back = Watcher(client, room)
            await back.enter("ann")
            await back.wait_for_members("ann", "bob")
            await stays.wait_for_members("ann", "bob")
