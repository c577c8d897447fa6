"""Tests of channels-redis on real servers: group messages to consumers, and wake-ups of the embedded engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from importlib.metadata import version
from typing import Any

import pytest
from django.test import override_settings

from reliable_cable.checks import check_channel_layers
from tests.support.client import PATIENCE, Client, identify, unique
from tests.support.redis import RedisPool, RedisServer, find_binaries
from tests.support.server import Kind, OtherProcess, Server, ServerPool

pytestmark = pytest.mark.redis

CORE = "channels_redis.core.RedisChannelLayer"
PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"
#: A polling interval that is longer than these tests, so that nothing is found by polling.
POLL_INTERVAL = 120


@pytest.fixture(scope="module")
def redis(redis_pool: RedisPool) -> RedisServer:
    """The Redis of the channel layers."""
    return redis_pool.get(find_binaries()[0].name)


def layers(backend: str, redis: RedisServer, **host: Any) -> dict[str, Any]:
    """Return a setting CHANNEL_LAYERS with one layer."""
    hosts = [{"address": redis.url, **host}]
    return {"default": {"BACKEND": backend, "CONFIG": {"hosts": hosts, "prefix": unique("layer-")}}}


def make_server(servers: ServerPool, kind: Kind, layers: dict[str, Any]) -> Server:
    """Return a server with channel layers. It is not started."""
    server = servers.make(kind, POLL_INTERVAL=POLL_INTERVAL, PING_INTERVAL=1)
    server.environment["CABLE_TEST_CHANNEL_LAYERS"] = json.dumps(layers)
    return server


@pytest.fixture(scope="module", params=[CORE, PUBSUB])
def layered(request: pytest.FixtureRequest, servers: ServerPool, kind: Kind, redis: RedisServer) -> Iterator[Server]:
    """A server whose channel layer has the configuration that the check W004 recommends."""
    with make_server(servers, kind, layers(request.param, redis, socket_timeout=30)) as server:
        yield server


@pytest.fixture
async def clients() -> AsyncIterator[AsyncExitStack]:
    """An exit stack that closes the clients of a test."""
    async with AsyncExitStack() as stack:
        yield stack


def layered_url(server: Server) -> str:
    """Return the URL of the consumer that listens to the channel layer."""
    return server.url.replace("/cable", "/layered")


async def test_a_group_message_from_another_process_reaches_each_consumer_once(
    layered: Server, clients: AsyncExitStack
) -> None:
    stream = unique("notes/")
    with OtherProcess(layered) as beside:
        listeners = [await clients.enter_async_context(Client(layered_url(layered))) for _ in range(3)]
        gone = Client(layered_url(layered))
        async with gone:
            pass
        reader = await clients.enter_async_context(Client(layered.url))
        identifier = await reader.subscribe(identify("StreamChannel", streams=[stream]))
        texts = [f"note {number}" for number in range(5)]
        for text in texts:
            await beside.call("group_send", "notes", {"type": "note", "stream": stream, "text": text})
        got = await reader.messages(identifier, len(listeners) * len(texts))
    for listener in listeners:
        assert [message["text"] for message in got if message["by"] == listener.sid] == texts
    await reader.nothing()


async def test_a_broadcast_from_another_process_wakes_the_server(layered: Server, clients: AsyncExitStack) -> None:
    stream = unique("woken/")
    client = await clients.enter_async_context(Client(layered.url))
    identifier = await client.subscribe(identify("StreamChannel", streams=[stream, f"cursor:{stream}"]))
    started = time.monotonic()
    with OtherProcess(layered) as beside:
        await beside.call("count_up", stream, 1, 20)
        assert [message["n"] for message in await client.messages(identifier, 20)] == list(range(1, 21))
        await beside.call("broadcast", f"cursor:{stream}", {"n": 21})
        assert await client.messages(identifier, 1) == [{"n": 21}]
    assert time.monotonic() - started < POLL_INTERVAL / 2


async def idle(client: Client) -> None:
    """Wait for more than 5 seconds, measured by pings. The channel layer has no messages in this time."""
    count = len(client.pings) + 7
    assert len(await client.ping(count, timeout=PATIENCE * 2)) >= count


async def test_a_layer_works_after_an_idle_time_unless_the_system_check_warned(
    servers: ServerPool, redis: RedisServer
) -> None:
    fails = int(version("redis").split(".")[0]) >= 8
    tested = [
        (layers(CORE, redis), fails),
        (layers(CORE, redis, socket_timeout=30), False),
        (layers(CORE, redis, socket_timeout=None), False),
        (layers(PUBSUB, redis), False),
    ]
    for configured, warned in tested:
        with override_settings(CHANNEL_LAYERS=configured):
            assert [message.id for message in check_channel_layers()] == ["reliable_cable.W004"] * warned
    with ExitStack() as stack:
        started = [stack.enter_context(make_server(servers, "uvicorn", configured)) for configured, _ in tested]
        besides = [stack.enter_context(OtherProcess(server)) for server in started]
        # The idle times are long, so the layers are tested at the same time.
        async with asyncio.TaskGroup() as group:
            for (_, warned), server, beside in zip(tested, started, besides, strict=True):
                group.create_task(check_idle_layer(server, beside, fails=warned))


async def check_idle_layer(server: Server, beside: OtherProcess, *, fails: bool) -> None:
    """Check that a layer works after an idle time, in which it must fail if `fails` is true, and must not otherwise."""
    stream = unique("idle/")
    async with Client(server.url) as reader, Client(layered_url(server)) as listener:
        identifier = await reader.subscribe(identify("StreamChannel", streams=[stream]))
        await idle(listener)
        # Redis answers at the time of the timeout. On a busy machine, the answer may come first. Then try again.
        for _ in range(5 if fails else 0):
            if "The channel layer cannot be read" in server.log:
                break
            await idle(listener)
        await beside.call("group_send", "notes", {"type": "note", "stream": stream, "text": "late"})
        assert await reader.messages(identifier, 1) == [{"text": "late", "by": listener.sid}]
    assert ("The channel layer cannot be read" in server.log) == fails
