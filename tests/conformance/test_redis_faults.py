"""Sessions and remote disconnects while Redis is down, cannot be reached, or has lost its data."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import Connect, redis_options
from tests.conformance.test_disconnect import expect_disconnect
from tests.conformance.test_takeover import disconnect_frames, resume, subscribe
from tests.support.client import PATIENCE, Client, identify, unique
from tests.support.faults import FaultProxy
from tests.support.redis import RedisServer
from tests.support.server import Server, ServerPool

pytestmark = pytest.mark.redis

PREFIX = "faults"
#: How long, in seconds, servers may take to disconnect all clients that must authenticate again, on a busy machine.
RENEWAL = 10.0 + PATIENCE


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis for one test."""
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def proxy(redis: RedisServer) -> AsyncIterator[FaultProxy]:
    """A proxy between the second server and Redis."""
    async with FaultProxy(redis.port) as proxy:
        yield proxy


@pytest.fixture
async def first(pools: dict[str, ServerPool], redis: RedisServer) -> AsyncIterator[Server]:
    server = pools["database"].make("daphne", **redis_options(redis, PREFIX))
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


@pytest.fixture
async def second(tmp_path: Path, first: Server, redis: RedisServer, proxy: FaultProxy) -> AsyncIterator[Server]:
    options = {**redis_options(redis, PREFIX), "REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"}
    server = Server("uvicorn", tmp_path, first.database, options, shared=True)
    await asyncio.to_thread(server.start)
    yield server
    server.kill()


async def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        await asyncio.sleep(0.02)


def stored_session(redis: RedisServer, client: Client) -> str:
    """Return the session record of a client in Redis; an empty string if there is none."""
    return redis.cli("GET", f"{PREFIX}:session:{client.sid}") or ""


async def increment_without_redis(client: Client, identifier: str) -> None:
    """Call the action that increases the count, while the result of the action waits for Redis.

    The pong shows that the server has received the command.
    """
    await client.perform(identifier, "increment")
    await client.send("ping")
    await client.expect({"type": "pong"})


async def check_session(connect_to: Connect, server: Server, former: Client, identifier: str) -> None:
    """Check that a server restores the session of a former client, whose count is 2."""
    client = await connect_to(server, sid=former.sid)
    await resume(client, identifier, 2)


async def use_the_control_bus(first: Server, second: Server, connect_to: Connect) -> None:
    """Disconnect a user of the second server, so that the control bus has carried a message before an outage."""
    gone = await connect_to(second, cookie=await first.sign_in("gone"))
    await first.call("disconnect_user", "gone")
    await expect_disconnect(gone, reconnect=False)


async def test_while_redis_is_down_clients_get_new_sessions_and_subscribes_wait(
    first: Server, second: Server, redis: RedisServer, connect_to: Connect
) -> None:
    stream = unique("stream")
    former = await connect_to(first)
    identifier = await former.subscribe(identify("StreamChannel", streams=[stream]))
    redis.kill()
    await former.cut()
    client = await connect_to(second, sid=former.sid)
    assert "restored" not in client.welcome
    await client.send("subscribe", identifier, history={"since": 1})
    redis.start()
    await client.expect({"type": "confirm_subscription", "identifier": identifier})
    await client.expect({"type": "confirm_history", "identifier": identifier})
    await first.call("broadcast", stream, {"n": 1})
    assert await client.messages(identifier, 1) == [{"n": 1}]
    # Kill the server only after it has stored the new session.
    await wait_until(lambda: stream in stored_session(redis, client))
    second.kill()
    reconnected = await connect_to(first, sid=client.sid)
    assert reconnected.welcome["restored_ids"] == [identifier]


async def test_sessions_that_redis_has_lost_are_written_again(
    first: Server, second: Server, redis: RedisServer, connect_to: Connect
) -> None:
    former = await connect_to(first)
    identifier = await subscribe(former, unique("stream"))
    redis.restart_empty()
    await wait_until(lambda: stored_session(redis, former))
    await former.perform(identifier, "increment")
    await former.until({"message": {"count": 2}})
    await wait_until(lambda: '"count": 2' in stored_session(redis, former))
    first.kill()
    await check_session(connect_to, second, former, identifier)


async def test_a_session_that_ended_while_redis_was_down_is_written_when_redis_is_up_again(
    first: Server, second: Server, redis: RedisServer, connect_to: Connect
) -> None:
    former = await connect_to(first)
    identifier = await subscribe(former)
    redis.kill()
    await increment_without_redis(former, identifier)
    await former.cut()
    redis.start()
    await wait_until(lambda: '"count": 2' in stored_session(redis, former))
    await check_session(connect_to, second, former, identifier)


async def test_a_client_sees_only_effects_that_survive_an_outage_and_a_kill(
    first: Server, second: Server, proxy: FaultProxy, connect_to: Connect
) -> None:
    former = await connect_to(second)
    identifier = await subscribe(former)
    await former.perform(identifier, "increment")
    await former.expect({"message": {"count": 2}})
    proxy.interrupt()
    await former.perform(identifier, "increment")
    # The server ends the session instead of sending the result. A client that loses its connection earlier has not seen
    # the result either.
    await expect_disconnect(former, reconnect=True)
    second.kill()
    await check_session(connect_to, first, former, identifier)


async def test_an_effect_is_sent_when_an_outage_is_over(
    first: Server, second: Server, proxy: FaultProxy, connect_to: Connect
) -> None:
    former = await connect_to(second)
    identifier = await subscribe(former)
    proxy.interrupt()
    await increment_without_redis(former, identifier)
    proxy.accept()
    await former.until({"message": {"count": 2}})
    second.kill()
    await check_session(connect_to, first, former, identifier)


async def test_a_process_that_could_not_reach_redis_applies_disconnects_afterwards(
    first: Server, second: Server, proxy: FaultProxy, connect_to: Connect
) -> None:
    name = unique("user")
    client = await connect_to(second, cookie=await first.sign_in(name))
    other = await connect_to(second)
    proxy.interrupt()
    await first.call("disconnect_user", name)
    await client.nothing()
    proxy.accept()
    await expect_disconnect(client, reconnect=False)
    await other.nothing()


async def test_after_a_restart_of_redis_with_its_data_only_disconnected_users_lose_their_connections(
    first: Server, second: Server, redis: RedisServer, proxy: FaultProxy, connect_to: Connect
) -> None:
    name = unique("user")
    client = await connect_to(second, cookie=await first.sign_in(name))
    other = await connect_to(second)
    await use_the_control_bus(first, second, connect_to)
    proxy.interrupt()
    await first.call("disconnect_user", name)
    redis.restart()
    proxy.accept()
    await expect_disconnect(client, reconnect=True)
    await wait_until(lambda: "Control messages were lost" in second.log)
    await other.nothing()
    assert other.alive


async def test_after_redis_has_lost_its_data_all_clients_must_authenticate_again(
    first: Server, second: Server, redis: RedisServer, proxy: FaultProxy, connect_to: Connect
) -> None:
    # The servers cannot know which sessions were revoked meanwhile, so they close all connections.
    name = unique("user")
    client = await connect_to(second, cookie=await first.sign_in(name))
    identifier = await subscribe(client)
    await use_the_control_bus(first, second, connect_to)
    proxy.interrupt()
    await first.call("disconnect_user", name)
    redis.restart_empty()
    proxy.accept()
    await client.closed(RENEWAL)
    assert disconnect_frames(client) == []
    reconnected = await connect_to(second, sid=client.sid, cookie=await first.sign_in(name))
    await resume(reconnected, identifier)


async def test_logging_out_works_without_redis(first: Server, redis: RedisServer, connect_to: Connect) -> None:
    cookie = await first.sign_in("alice")
    redis.kill()
    await first.sign_out(cookie)
    assert "are not closed yet; trying again" in first.log


async def test_state_changes_of_a_client_with_long_identifiers_write_little_to_redis(
    first: Server, second: Server, redis: RedisServer, connect_to: Connect
) -> None:
    former = await connect_to(first)
    names = [identify("AuditedChannel", audit=unique("audit"), id=number, pad="p" * 1900) for number in range(100)]
    for name in names:
        await former.subscribe(name)
    written = redis.cli("INFO", "stats")["total_net_input_bytes"]
    for number in range(1, 201):
        await former.perform(names[50], "increment")
        await former.expect({"message": {"count": number}})
    # Each session record has more than 200 KB.
    assert redis.cli("INFO", "stats")["total_net_input_bytes"] - written < 4_000_000
    assert redis.cli("STRLEN", f"{PREFIX}:session:{former.sid}") > 200_000
    await former.cut()
    client = await connect_to(second, sid=former.sid)
    assert set(client.welcome["restored_ids"]) == set(names)
    await client.perform(names[50], "increment")
    await client.until({"message": {"count": 201}})
