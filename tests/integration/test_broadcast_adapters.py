"""Each adapter delivers broadcasts to clients of a real anycable-go server, with the semantics of `broadcast`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import pytest
from django.contrib.auth.models import User
from django.db import connections, transaction
from django.test import override_settings

from reliable_cable import (
    BroadcastError,
    abroadcast,
    abroadcast_batch,
    adisconnect,
    broadcast,
    broadcast_batch,
    cable_token,
)
from reliable_cable.signals import broadcast_failed
from reliable_cable.stores.engine import get_engine
from tests.support.client import Client, unique
from tests.support.nats import NatsServer
from tests.support.redis import RedisServer
from tests.support.server import ROOT, environment
from tests.support.standalone_anycable import StandaloneAnyCable

pytestmark = [pytest.mark.anycable, pytest.mark.django_db(transaction=True)]

SECRET: Final = "a secret that anycable-go and Django share"
ADAPTERS = [
    pytest.param("redisx", marks=pytest.mark.redis),
    pytest.param("redis", marks=pytest.mark.redis),
    pytest.param("nats", marks=pytest.mark.nats),
    "http",
]
T = TypeVar("T")

#: A program that broadcasts, forks, and broadcasts in both processes, as workers of Celery do.
FORKING = """
import os, django
django.setup()
from reliable_cable import broadcast
stream = os.environ["STREAM"]
broadcast(stream, {"from": "parent", "at": "first"})
child = os.fork()
if child == 0:
    try:
        broadcast(stream, {"from": "child"})
    finally:
        os._exit(0)
os.waitpid(child, 0)
broadcast(stream, {"from": "parent", "at": "last"})
"""


class Restartable(Protocol):
    """A server process."""

    def start(self) -> object:
        """Start the process."""

    def kill(self) -> object:
        """Kill the process."""


@dataclass(frozen=True, slots=True)
class Front:
    """A running anycable-go server, and the settings with which a project broadcasts through it.

    Args:
        anycable: the process.
        between: the server to which the adapter connects.
        settings: the settings `RELIABLE_CABLE` of the project.
    """

    anycable: StandaloneAnyCable
    between: Restartable
    settings: dict[str, Any]

    def client(self) -> Client:
        """Return a client with a token of its own."""
        return Client(self.anycable.url, query=f"jid={cable_token({'device': unique('d')})}")

    async def wait_until_ready(self) -> None:
        """Broadcast until a client receives a message, which shows that anycable-go has connected to its server."""
        async with self.client() as client, asyncio.timeout(60):
            stream, identifier = await listen(client)
            while True:
                await abroadcast(stream, "found")
                try:
                    assert await client.messages(identifier, 1, timeout=0.5) == ["found"]
                except AssertionError:
                    continue
                break


def run_front(adapter: str, folder: Path, stack: ExitStack) -> Front:
    """Start anycable-go, and the server of its adapter."""
    # In anycable-go 1.5, no option changes the key of the Redis stream.
    channel = "__anycable__" if adapter == "redisx" else unique("cable-")
    settings = {"SECRET": SECRET, "BROADCAST_ADAPTER": adapter, "BROADCAST_CHANNEL": channel, "JWT_SECRET": SECRET}
    options: dict[str, Any] = {"broadcast_adapter": adapter, "public_streams": True, "secret": SECRET}

    def enter(server: AbstractContextManager[T]) -> T:
        return stack.enter_context(server)

    if adapter in ("redis", "redisx"):
        redis = enter(RedisServer(folder / "redis"))
        settings["REDIS_URL"] = redis.url
        anycable = StandaloneAnyCable(folder, redis_url=redis.url, redis_channel=channel, **options)
        return Front(enter(anycable), redis, settings)
    if adapter == "nats":
        nats = enter(NatsServer(folder / "nats"))
        settings["NATS_URL"] = nats.url
        anycable = StandaloneAnyCable(folder, nats_servers=nats.url, nats_channel=channel, **options)
        return Front(enter(anycable), nats, settings)
    anycable = enter(StandaloneAnyCable(folder, **options))
    settings["HTTP_BROADCAST_URL"] = f"http://127.0.0.1:{anycable.port}/_broadcast"
    return Front(anycable, anycable, settings)


@pytest.fixture(scope="module", params=ADAPTERS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A running anycable-go server. Each test runs once with each adapter."""
    with ExitStack() as stack:
        front = run_front(request.param, tmp_path_factory.mktemp(request.param), stack)
        with override_settings(RELIABLE_CABLE=front.settings):
            asyncio.run(_with_closed_connections(front.wait_until_ready()))
        yield front


async def _with_closed_connections(call: Coroutine[Any, Any, None]) -> None:
    try:
        await call
    finally:
        await get_engine().aclose()
        get_engine().streams.close()


@pytest.fixture(autouse=True)
async def project(front: Front) -> AsyncIterator[None]:
    """Give this process the settings of the project."""
    with override_settings(RELIABLE_CABLE=front.settings):
        yield
        await get_engine().aclose()
        get_engine().streams.close()


@pytest.fixture
async def client(front: Front) -> AsyncIterator[Client]:
    """A client of anycable-go."""
    async with front.client() as client:
        yield client


async def listen(client: Client) -> tuple[str, str]:
    """Subscribe to a new stream. Return its name, and the identifier of the subscription."""
    stream = unique("chat:")
    identifier = json.dumps({"channel": "$pubsub", "stream_name": stream})
    return stream, await client.subscribe(identifier)


async def in_thread(call: Callable[[], T]) -> T:
    """Run sync code in a thread, as a WSGI server does, and close its database connections."""

    def run() -> T:
        try:
            return call()
        finally:
            connections.close_all()

    return await asyncio.to_thread(run)


async def test_broadcasts_arrive_in_order_and_unchanged(client: Client) -> None:
    stream, identifier = await listen(client)
    sent = [{"text": 'Grüße, "世界" 😀', "number": number} for number in range(20)]

    def broadcast_all() -> list[object]:
        return [broadcast(stream, each) for each in sent]

    assert await in_thread(broadcast_all) == [None] * 20, "anycable-go numbers the messages"
    assert await client.messages(identifier, 20) == sent


async def test_async_code_broadcasts_too(client: Client) -> None:
    stream, identifier = await listen(client)
    assert await abroadcast(stream, "kept") is None
    assert await abroadcast(stream, "transient", transient=True) is None
    assert await client.messages(identifier, 2) == ["kept", "transient"]


async def test_a_batch_arrives_in_order(client: Client) -> None:
    stream, identifier = await listen(client)
    assert await in_thread(lambda: broadcast_batch([(stream, number) for number in range(1, 101)])) == [None] * 100
    await abroadcast_batch([(stream, "a"), (stream, "b", {"transient": True}), (stream, "c"), (stream, "d")])
    assert await client.messages(identifier, 104) == [*range(1, 101), "a", "c", "d", "b"]


async def test_large_batches_arrive(client: Client) -> None:
    """The batch has 1.6 MB. By default, a NATS server accepts messages of up to 1 MiB."""
    stream, identifier = await listen(client)
    texts = [str(number) * 200_000 for number in range(8)]
    await abroadcast_batch([(stream, text) for text in texts])
    assert await client.messages(identifier, 8) == texts


async def test_an_excluded_client_does_not_receive_the_message(client: Client, front: Front) -> None:
    stream, identifier = await listen(client)
    async with front.client() as other:
        await other.subscribe(identifier)
        await abroadcast(stream, "to others", exclude_socket=client.sid)
        await abroadcast(stream, "to all")
        assert await other.messages(identifier, 2) == ["to others", "to all"]
        assert await client.messages(identifier, 1) == ["to all"]


async def test_a_broadcast_in_a_transaction_is_sent_after_the_commit(client: Client) -> None:
    stream, identifier = await listen(client)

    def run() -> None:
        with transaction.atomic():
            broadcast(stream, "after the commit")
            broadcast(stream, "before the commit", immediate=True)
        with transaction.atomic():
            broadcast(stream, "rolled back")
            transaction.set_rollback(True)
        broadcast(stream, "last")

    await in_thread(run)
    assert await client.messages(identifier, 3) == ["before the commit", "after the commit", "last"]


async def test_all_threads_and_event_loops_of_a_process_can_broadcast(client: Client) -> None:
    stream, identifier = await listen(client)

    def broadcast_some(name: int) -> None:
        for number in range(5):
            broadcast(stream, [name, number])

        async def with_another_loop() -> None:
            await abroadcast(stream, [name, 5])
            await get_engine().streams.aclose()

        asyncio.run(with_another_loop())

    def run() -> None:
        threads = [threading.Thread(target=broadcast_some, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    await in_thread(run)
    received = await client.messages(identifier, 36)
    for name in range(6):
        assert [number for sender, number in received if sender == name] == list(range(6))


async def test_a_forked_process_broadcasts_with_its_own_connection(client: Client, front: Front) -> None:
    stream, identifier = await listen(client)
    variables = environment(Path("unused.sqlite3"), front.settings, STREAM=stream)
    # Since Python 3.12, a fork of a process with several threads causes a warning.
    ignored = ("-W", "ignore:This process:DeprecationWarning")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *ignored, "-c", FORKING, cwd=ROOT, env=variables, stderr=subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    assert await client.messages(identifier, 3) == [
        {"from": "parent", "at": "first"},
        {"from": "child"},
        {"from": "parent", "at": "last"},
    ]


async def test_disconnect_closes_the_connections_of_a_user(client: Client, front: Front) -> None:
    user = await User.objects.acreate(username=unique("u"))
    async with Client(front.anycable.url, query=f"jid={cable_token(user)}") as theirs:
        await adisconnect(user=user, reconnect=True)
        assert (await theirs.next()) == {"type": "disconnect", "reason": "remote", "reconnect": True}
    stream, identifier = await listen(client)
    await abroadcast(stream, "others stay connected")
    assert await client.messages(identifier, 1) == ["others stay connected"]


async def test_a_lost_server_is_an_error_and_later_broadcasts_arrive(front: Front) -> None:
    await abroadcast("any", "opens a connection")
    failures: list[Any] = []

    def note(sender: object, error: Exception, **kwargs: Any) -> None:
        failures.append(error)

    def broadcast_in_transaction() -> None:
        with transaction.atomic():
            broadcast("any", "lost after the commit")

    front.between.kill()
    broadcast_failed.connect(note)
    try:
        with pytest.raises(BroadcastError):
            await abroadcast("any", "lost")
        with pytest.raises(BroadcastError):
            await in_thread(lambda: broadcast_batch([("any", "lost"), ("any", "lost, too")]))
        await in_thread(broadcast_in_transaction)
    finally:
        broadcast_failed.disconnect(note)
        front.between.start()
    assert [type(error) for error in failures] == [BroadcastError]

    await front.wait_until_ready()
