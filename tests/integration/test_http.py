"""Tests on real servers of the HTTP endpoints with which programs other than Django broadcast."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from django.test import override_settings

from reliable_cable import presence_for
from reliable_cable.stores.presence.base import PresenceInfo
from tests.support.client import Client, identify, unique
from tests.support.redis import RedisServer
from tests.support.server import LOCAL, Kind, OtherProcess, Server, ServerPool

SECRET = "a secret that tests can sign with"


def key(purpose: str) -> str:
    return hmac.new(SECRET.encode(), purpose.encode(), hashlib.sha256).hexdigest()


@pytest.fixture(params=["", "/direct"], ids=["views", "CableHTTP"])
def prefix(request: pytest.FixtureRequest) -> str:
    """The beginning of the paths of the endpoints."""
    return str(request.param)


@pytest.fixture
async def http(server: Server, prefix: str) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client with the key for broadcasts."""
    headers = {"Authorization": f"Bearer {key('broadcast-cable')}"}
    url = f"http://127.0.0.1:{server.port}{prefix}"
    async with httpx.AsyncClient(base_url=url, headers=headers, **LOCAL) as client:
        yield client


@pytest.fixture
async def cable(server: Server) -> AsyncIterator[Client]:
    """A WebSocket client."""
    async with Client(server.url) as client:
        yield client


def message(stream: str, data: Any, **meta: Any) -> dict[str, Any]:
    return {"stream": stream, "data": json.dumps(data), **({"meta": meta} if meta else {})}


async def test_a_message_is_stored_and_delivered(http: httpx.AsyncClient, cable: Client, server: Server) -> None:
    stream = unique("http/")
    identifier = await cable.subscribe(identify("StreamChannel", streams=[stream]))
    response = await http.post("/_broadcast", json=message(stream, {"text": "żółw 🐢"}))
    assert (response.status_code, response.content) == (201, b"")
    position = await server.call("position", stream)
    assert await cable.next() == {
        "identifier": identifier,
        "message": {"text": "żółw 🐢"},
        "stream_id": stream,
        "epoch": position["epoch"],
        "offset": 1,
    }


async def test_concurrent_arrays_keep_the_order_of_their_messages(http: httpx.AsyncClient, cable: Client) -> None:
    stream, other = unique("large:"), unique("large:")
    identifier = await cable.subscribe(identify("StreamChannel", streams=[stream, other]))
    batches = [[message(stream, {"w": w, "n": n}) for n in range(20)] for w in range(5)]
    responses = await asyncio.gather(*[http.post("/_broadcast", json=batch) for batch in batches])
    assert [response.status_code for response in responses] == [201] * 5
    frames = [await cable.expect({"identifier": identifier}) for _ in range(100)]
    assert [frame["offset"] for frame in frames] == list(range(1, 101))
    # The messages of an array are stored together, without messages of other requests between them.
    payloads = [frame["message"] for frame in frames]
    assert [payload["n"] for payload in payloads] == list(range(20)) * 5
    assert all(len({payload["w"] for payload in payloads[at : at + 20]}) == 1 for at in range(0, 100, 20))


async def test_meta_can_exclude_a_connection_and_make_a_message_transient(
    http: httpx.AsyncClient, cable: Client, server: Server
) -> None:
    stream = unique("http/")
    identifier = await cable.subscribe(identify("StreamChannel", streams=[stream]))
    async with Client(server.url) as other:
        await other.subscribe(identifier)
        messages = [
            message(stream, {"n": 1}, exclude_socket=cable.sid),
            message(stream, {"n": 2}),
            message(stream, {"n": 3}, transient=True),
        ]
        assert (await http.post("/_broadcast", json=messages)).status_code == 201
        # A transient message has no position, so its place among the other messages is not fixed.
        here, there = await cable.messages(identifier, 2), await other.messages(identifier, 3)
        assert sorted(data["n"] for data in here) == [2, 3]
        assert [data["n"] for data in there if data["n"] != 3] == [1, 2]
        await cable.nothing()
    assert (await server.call("position", stream))["offset"] == 2


async def test_the_api_publishes_and_lists_members(http: httpx.AsyncClient, cable: Client) -> None:
    room = unique("a room/100% ")
    identifier = await cable.subscribe(identify("RoomChannel", room=room))
    await cable.send("join", identifier, presence={"id": 42, "info": {"name": "Ann"}})
    await cable.expect({"type": "presence", "message": {"type": "join"}})
    headers = {"Authorization": f"Bearer {key('api-cable')}"}
    users = await http.get(f"/api/presence/{quote(room, safe='')}/users", headers=headers)
    assert users.json() == {"type": "info", "total": 1, "records": [{"id": "42", "info": {"name": "Ann"}}]}
    behind = {"BROADCAST_ADAPTER": "http", "SECRET": SECRET, "API_URL": str(http.base_url.join("api"))}
    with override_settings(RELIABLE_CABLE=behind):  # as a project behind anycable-go reads the members
        assert await presence_for(room).ainfo() == PresenceInfo(1, {"42": {"name": "Ann"}})
    assert (await http.post("/api/publish", json=message(room, {"n": 1}), headers=headers)).status_code == 201
    assert await cable.messages(identifier, 1) == [{"n": 1}]


def user_id(server: Server, username: str) -> int:
    with contextlib.closing(sqlite3.connect(server.database)) as connection:
        return int(connection.execute("SELECT id FROM auth_user WHERE username = ?", [username]).fetchone()[0])


async def test_a_command_closes_a_users_connections(http: httpx.AsyncClient, cable: Client, server: Server) -> None:
    names = [unique("user"), unique("user")]
    cookies = [await server.sign_in(name) for name in names]
    async with Client(server.url, cookie=cookies[0]) as mine, Client(server.url, cookie=cookies[1]) as other:
        identifier = json.dumps({"user": f"auth.user:{user_id(server, names[0])}"})
        command = {"command": "disconnect", "payload": {"identifier": identifier, "reconnect": True}}
        assert (await http.post("/_broadcast", json=command)).status_code == 201
        await mine.expect({"type": "disconnect", "reason": "remote", "reconnect": True})
        await mine.closed()
        await other.nothing()
        await cable.nothing()


async def test_invalid_requests_are_refused(http: httpx.AsyncClient, server: Server) -> None:
    stream = unique("http/")
    wrong = {"Authorization": f"Bearer {key('api-cable')}"}
    assert (await http.post("/_broadcast", json=message(stream, 1), headers=wrong)).status_code == 401
    assert (await http.post("/api/publish", json=message(stream, 1))).status_code == 401
    assert (await http.get(f"/api/presence/{quote(stream)}/users")).status_code == 401
    for body in (b"", b"[]", b'{"stream":"a"}', json.dumps(message(stream, None)).encode()):
        response = await http.post("/_broadcast", content=body)
        assert response.status_code == 422
        assert response.json()["error"]
    assert (await server.call("position", stream))["offset"] == 0


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused(http: httpx.AsyncClient, chunked: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * 100_000

    response = await http.post("/_broadcast", content=parts() if chunked else b" " * 5_000_000)
    assert response.status_code == 413
    assert "more than 2097152 bytes" in response.json()["error"]


@contextlib.contextmanager
def locked(server: Server) -> Iterator[None]:
    """Hold the write lock of the database."""
    connection = sqlite3.connect(server.database, isolation_level=None)
    with contextlib.closing(connection):
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def test_a_broadcast_that_waits_for_a_lock_delays_no_connection(
    http: httpx.AsyncClient, cable: Client, server: Server
) -> None:
    stream = unique("http/")
    echo = await cable.subscribe(identify("EchoChannel"))
    with locked(server):
        posts = [asyncio.create_task(http.post("/_broadcast", json=message(stream, {"n": n}))) for n in range(10)]
        assert (await http.get("/nowhere")).status_code == 404
        for n in range(5):
            await cable.perform(echo, "aecho", n=n)
            assert (await cable.messages(echo, 1))[0]["echo"]["n"] == n
        assert not any(post.done() for post in posts)
    assert [(await post).status_code for post in posts] == [201] * 10
    assert (await server.call("position", stream))["offset"] == 10


async def test_a_wsgi_server_accepts_broadcasts_too(
    http: httpx.AsyncClient, cable: Client, beside: OtherProcess
) -> None:
    stream = unique("http/")
    identifier = await cable.subscribe(identify("StreamChannel", streams=[stream]))
    url = f"http://127.0.0.1:{await beside.call('serve_wsgi')}/_broadcast"
    assert (await http.post(url, json=[message(stream, {"n": 1}), message(stream, {"n": 2})])).status_code == 201
    assert await cable.messages(identifier, 2) == [{"n": 1}, {"n": 2}]
    assert (await http.post(url, content=b" " * 3_000_000)).status_code == 413
    assert (await http.post(url, json={}, headers={"Authorization": ""})).status_code == 401


@pytest.mark.redis
async def test_a_broadcast_fails_with_an_error_while_redis_is_down(
    servers: ServerPool, kind: Kind, prefix: str, tmp_path: Path
) -> None:
    stream, headers = unique("http/"), {"Authorization": f"Bearer {key('broadcast-cable')}"}
    with RedisServer(tmp_path) as redis, servers.make(kind, REDIS_URL=redis.url) as server:
        url = f"http://127.0.0.1:{server.port}{prefix}/_broadcast"
        async with (
            Client(server.url) as cable,
            httpx.AsyncClient(headers=headers, **LOCAL) as http,
        ):
            await cable.subscribe(identify("StreamChannel", streams=[stream]))
            assert (await http.post(url, json=message(stream, {"n": 1}))).status_code == 201
            await cable.until({"message": {"n": 1}})
            redis.kill()
            for meta in ({}, {"transient": True}):
                response = await http.post(url, json=message(stream, {"n": 2}, **meta))
                assert (response.status_code, response.json()["stored"]) == (503, False)
            redis.start()
            assert (await http.post(url, json=message(stream, {"n": 3}))).status_code == 201
            got = [frame["message"] for frame in await cable.until({"message": {"n": 3}}) if "message" in frame]
            assert got == [{"n": 3}]
