"""The connections and calls of the Redis client."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.conf import CableSettings
from reliable_cable.stores.redis.client import CONNECTION_ERRORS, Call, RedisClient, RedisUnavailable
from reliable_cable.stores.redis.exchange import cancellable, pack
from reliable_cable.stores.streams.base import Message
from tests.stores.conftest import MakeStore, until
from tests.stores.test_redis_streams import alias, make_own, own
from tests.stores.test_streams import append, kept
from tests.support.faults import FaultProxy
from tests.support.redis import RedisServer

pytestmark = pytest.mark.redis

__all__ = ["alias", "make_own", "own"]


@pytest.fixture
def client(redis_url: str) -> Iterator[RedisClient]:
    client = RedisClient(CableSettings(redis_url=redis_url))
    yield client
    client.close()


def test_a_client_that_is_not_used_any_more_closes_its_connections(redis_url: str) -> None:
    client: Any = RedisClient(CableSettings(redis_url=redis_url))
    client.run(Call("PING"))
    pool = client._pool
    connection = pool.get_connection()
    pool.release(connection)
    assert connection.is_connected
    client.cycle = client
    del client
    gc.collect()
    assert not connection.is_connected


@pytest.mark.parametrize("connected", [True, False])
async def test_a_connection_that_the_event_loop_has_closed_is_broken(
    client: RedisClient, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    # With uvloop, sending over such a connection, even while it is being opened, raises an error that is neither an
    # OSError nor one of redis-py.
    if connected:
        await client.arun(Call("PING"))
    write = asyncio.StreamWriter.writelines
    tries = 0

    def fail_twice(writer: asyncio.StreamWriter, lines: Iterable[bytes]) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise RuntimeError("unable to perform operation; the handler is closed")
        write(writer, lines)

    monkeypatch.setattr(asyncio.StreamWriter, "writelines", fail_twice)
    with pytest.raises(RedisUnavailable):
        await client.arun(Call("PING"), idempotent=True)
    assert tries == 2
    assert await client.arun(Call("PING")) == [b"PONG"]
    await client.aclose()


async def test_a_connection_that_was_reset_is_broken(redis_server: RedisServer) -> None:
    # On Python 3.13, writing to the closed transport of such a connection raises AttributeError.
    async with FaultProxy(redis_server.port) as proxy:
        client = RedisClient(CableSettings(redis_url=f"redis://127.0.0.1:{proxy.port}/0"))
        connection = client.new_connection()
        await connection.connect()
        await until(lambda: proxy.links)
        reader = connection._reader
        proxy.cut()
        await until(lambda: reader.exception() or reader.at_eof())
        await asyncio.sleep(0)
        with pytest.raises(CONNECTION_ERRORS):
            await cancellable(connection.send_command("PING", check_health=False))
        await connection.disconnect(nowait=True)
        client.close()


@pytest.mark.parametrize("connected", [True, False])
async def test_a_call_can_be_cancelled_at_any_point(client: RedisClient, connected: bool) -> None:
    for turns in range(1000):
        if connected:
            await client.arun(Call("PING"))
        else:
            await client.aclose()
        call = asyncio.create_task(client.arun(Call("PING")))
        for _ in range(turns):
            await asyncio.sleep(0)
        if call.done():
            break
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled(), f"after {turns} turns of the event loop"
    else:
        pytest.fail("it never ended by itself")
    await client.aclose()


async def test_a_connection_whose_opening_was_cancelled_gives_no_wrong_replies(redis_server: RedisServer) -> None:
    async with FaultProxy(redis_server.port) as proxy:
        client = RedisClient(CableSettings(redis_url=f"redis://127.0.0.1:{proxy.port}/0"))
        proxy.stall()
        opening = asyncio.ensure_future(client.arun(Call("PING")))
        await until(lambda: proxy.links)
        opening.cancel()
        await asyncio.wait([opening])
        proxy.resume()
        assert await client.arun(Call("ECHO", (), ("hello",))) == [b"hello"]
        await client.aclose()


async def test_a_closed_client_finishes_its_calls_and_keeps_no_connection(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        client = RedisClient(CableSettings(redis_url=server.url))
        await asyncio.gather(*[client.arun(Call("PING")) for _ in range(3)])
        server.suspend()
        calls = [asyncio.create_task(client.arun(Call("PING"))) for _ in range(2)]
        await asyncio.sleep(0)
        await client.aclose()
        assert not any(call.done() for call in calls)
        server.resume()
        assert [await call for call in calls] == [[b"PONG"]] * 2
        await until(lambda: connections(server) == 1)


async def test_a_call_that_is_cancelled_when_its_client_is_closed_leaves_no_connection(tmp_path: Path) -> None:
    clients = []  # so that the garbage collector closes no connection
    with RedisServer(tmp_path) as server:
        for turns in range(1000):
            client = RedisClient(CableSettings(redis_url=server.url))
            clients.append(client)
            await client.arun(Call("PING"))
            call = asyncio.create_task(client.arun(Call("PING")))
            for _ in range(turns):
                await asyncio.sleep(0)
            ended = call.done()
            call.cancel()
            await client.aclose()
            await asyncio.wait([call])
            if ended:
                break
        await until(lambda: connections(server) == 1)


def connections(server: RedisServer) -> int:
    """Return the number of connections to the server, including the connection that this call opens."""
    return int(server.cli("INFO", "clients")["connected_clients"])


class TestClient:
    def test_threads_share_a_pool_and_wait_for_its_connections(self, make_store: MakeStore) -> None:
        store = make_store(redis_options={"max_connections": 2}, history_size=1000)
        threads = [
            threading.Thread(target=lambda: [append(store, str(number)) for number in range(20)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [offset for offset, _ in kept(store)] == list(range(1, 161))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_child_has_its_own_connections(self, make_store: MakeStore) -> None:
        store = make_store()
        append(store, "0")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                append(store, *map(str, range(1, 51)))
                code = 0
            finally:
                os._exit(code)
        for number in range(50):
            append(store, str(number))
        assert os.waitpid(pid, 0)[1] == 0
        assert [offset for offset, _ in kept(store)] == list(range(2, 102))

    def test_scripts_that_redis_has_lost_are_loaded_again(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        append(store, "1")
        own.cli("SCRIPT", "FLUSH")
        assert append(store, "2") == [2]

    def test_a_unix_socket_works(self, tmp_path: Path, key_prefix: str) -> None:
        socket = Path("/tmp") / f"{key_prefix}-{os.getpid()}.sock"  # noqa: S108 - paths of sockets must be short
        with RedisServer(tmp_path / "redis", options={"unixsocket": str(socket)}):
            client = RedisClient(CableSettings(redis_url=f"unix://{socket}"))
            assert client.run(Call("PING")) == [b"PONG"]
            client.close()

    def test_a_rediss_url_uses_tls(self) -> None:
        client = RedisClient(CableSettings(redis_url="rediss://127.0.0.1:1", redis_options={"ssl_cert_reqs": "none"}))
        assert type(client._pool.make_connection()).__name__ == "SSLConnection"
        client.close()

    async def test_a_cancelled_call_leaves_no_reply_for_the_next_call(
        self, own: RedisServer, make_own: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = asyncio.StreamWriter.writelines
        written: list[bytes] = []

        def remember(writer: asyncio.StreamWriter, lines: Iterable[bytes]) -> None:
            written.extend(lines)
            write(writer, lines)

        store = make_own(redis_options={"max_connections": 1})
        await store.aappend([("a", Message(json.dumps("x" * 1000)))])
        own.suspend()
        monkeypatch.setattr(asyncio.StreamWriter, "writelines", remember)
        reading = asyncio.create_task(store.aread("a", after=0, limit=10))
        await until(lambda: written)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        own.resume()
        assert await store.client.arun(Call("ECHO", [], ["hello"])) == [b"hello"]


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"])) | st.binary() | st.integers() | st.floats(),
            min_size=1,
            max_size=8,
        ),
        max_size=4,
    )
)
def test_commands_are_packed_as_redis_py_packs_them(commands: list[list[str | bytes | int | float]]) -> None:
    connection: Any = redis.Connection()  # type: ignore[no-untyped-call]
    # redis-py splits the name of a command at its spaces, so each of these commands has a name without spaces.
    named = [["GET", *arguments] for arguments in commands]
    assert pack(named) == b"".join(connection.pack_commands(named))
