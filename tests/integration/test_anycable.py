"""The real anycable-go in front of Django, which it calls by HTTP or by gRPC."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import httpx
import pytest

from tests.integration.test_anycable_conformance import pytest_generate_tests, rpc, server
from tests.integration.test_rolling_restart import Load
from tests.node.running import run_script
from tests.support.anycable_front import AnyCable, RPCServer, derive, start_anycable
from tests.support.client import BASE, EXTENDED, Client, Frame, identify, unique
from tests.support.server import LOCAL, OtherProcess, ServerPool

__all__ = ["pytest_generate_tests", "rpc", "server"]

pytestmark = pytest.mark.anycable


async def test_streams_start_and_stop_in_actions(server: AnyCable) -> None:
    first, second = unique("stream"), unique("stream")
    async with Client(server.url) as client:
        identifier = await client.subscribe(identify("StreamChannel", streams=[first]))
        await client.perform(identifier, "start", stream=second)
        await client.expect({"message": {"started": second}})
        await server.broadcast(second, {"n": 1})
        await client.expect({"message": {"n": 1}})
        await client.perform(identifier, "stop", stream=first)
        await client.expect({"message": {"stopped": first}})
        await server.broadcast(first, {"n": 2})
        await server.broadcast(second, {"n": 3})
        await client.expect({"message": {"n": 3}})
        await client.perform(identifier, "stop_all")
        await client.expect({"message": {"stopped": "all"}})
        await server.broadcast(second, {"n": 4})
        await client.perform(identifier, "start", stream=first)
        await client.expect({"message": {"started": first}})
        await server.broadcast(first, {"n": 5})
        await client.expect({"message": {"n": 5}})


async def test_the_state_is_kept_until_the_subscription_ends(server: AnyCable) -> None:
    audit = unique("audit")
    async with Client(server.url) as client:
        first = await client.subscribe(identify("AuditedChannel", audit=audit, id=1))
        second = await client.subscribe(identify("AuditedChannel", audit=audit, id=2))
        for number in (1, 2):
            await client.perform(first, "increment")
            await client.expect({"identifier": first, "message": {"count": number}})
        await client.perform(second, "increment")
        await client.expect({"identifier": second, "message": {"count": 1}})
        await client.send("unsubscribe", first)
        await client.subscribe(first)
        await client.perform(first, "increment")
        await client.expect({"identifier": first, "message": {"count": 1}})


@pytest.mark.parametrize("how", ["close", "cut"])
async def test_unsubscribed_runs_once_for_each_subscription(server: AnyCable, how: str) -> None:
    audit = unique("audit")
    async with Client(server.url) as auditor, Client(server.url) as client:
        listening = await auditor.subscribe(identify("StreamChannel", streams=[audit]))
        identifiers = [await client.subscribe(identify("AuditedChannel", audit=audit, id=n)) for n in range(3)]
        await client.send("unsubscribe", identifiers[0])
        await auditor.messages(listening, 4)
        await (client.close() if how == "close" else client.cut())
        ended = await auditor.messages(listening, 2)
        assert {(message["event"], message["id"]) for message in ended} == {("unsubscribed", 1), ("unsubscribed", 2)}
        await server.broadcast(audit, {"event": "none"})
        await auditor.expect({"message": {"event": "none"}})


async def test_a_client_reconnects_with_its_session_and_its_history(server: AnyCable) -> None:
    stream = unique("stream")
    async with Client(server.url) as former:
        identifier = await former.subscribe(identify("StreamChannel", streams=[stream]))
        await server.broadcast(stream, {"n": 1})
        at = await former.expect({"message": {"n": 1}})
        await former.cut()
    await server.broadcast(stream, {"n": 2})
    async with Client(server.url, sid=former.sid) as client:
        assert client.welcome["restored_ids"] == [identifier]
        position = {"epoch": at["epoch"], "offset": at["offset"]}
        await client.send("history", identifier, history={"streams": {at["stream_id"]: position}})
        await client.expect({"message": {"n": 2}})
        await client.expect({"type": "confirm_history"})


async def test_a_logout_disconnects_the_connections_of_the_user(server: AnyCable) -> None:
    name = unique("user")
    cookie = await server.sign_in(name)
    async with Client(server.url, cookie=cookie) as ann, Client(server.url) as other:
        await ann.subscribe(identify("EchoChannel"))
        await server.sign_out(cookie)
        await ann.expect({"type": "disconnect", "reason": "remote"})
        await ann.closed()
        await other.subscribe(identify("EchoChannel"))


async def test_the_next_command_after_a_session_is_deleted_ends_the_connection(server: AnyCable) -> None:
    cookie = await server.sign_in(unique("user"))
    async with Client(server.url, cookie=cookie) as client:
        identifier = await client.subscribe(identify("EchoChannel"))
        await server.call("delete_session", cookie.removeprefix("sessionid="))
        await client.perform(identifier, "echo")
        await client.expect({"type": "disconnect", "reason": "unauthorized", "reconnect": False})
        await client.closed()


async def test_a_remote_disconnect_finds_the_connections_of_a_user(server: AnyCable) -> None:
    name = unique("user")
    async with Client(server.url, cookie=await server.sign_in(name)) as ann, Client(server.url) as other:
        identifier = await ann.subscribe(identify("EchoChannel"))
        await server.call("disconnect_user", name)
        await ann.expect({"type": "disconnect", "reason": "remote", "reconnect": False})
        await other.subscribe(identifier)


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "null"])
async def test_pages_of_other_sites_are_refused(server: AnyCable, origin: str) -> None:
    client = Client(server.url, origin=origin)
    await client.open()
    try:
        await client.expect({"type": "disconnect", "reason": "unauthorized", "reconnect": False})
        await client.closed()
    finally:
        await client.close()


async def test_cookies_without_an_origin_are_refused(servers: ServerPool, tmp_path: Path) -> None:
    with ExitStack() as stack:
        anycable = start_anycable(stack, servers, tmp_path, options={"headers": "cookie"})
        client = Client(anycable.url, cookie=await anycable.sign_in("ann"))
        await client.open()
        try:
            await client.expect({"type": "disconnect", "reason": "unauthorized"})
        finally:
            await client.close()
        assert "ANYCABLE_HEADERS=cookie,origin" in anycable.log


@pytest.mark.parametrize("protocol", [EXTENDED, BASE])
async def test_a_token_that_anycable_go_verifies_names_the_user(server: AnyCable, protocol: str) -> None:
    """anycable-go makes no `connect` call for such a client. So the first call is for a command."""
    name = unique("user")
    await server.sign_in(name)
    token = await server.call("make_token", name)
    async with Client(server.url, protocols=[protocol], query=f"jid={token}") as client:
        identifier = await client.subscribe(identify("EchoChannel"))
        await client.perform(identifier, "whoami")
        await client.expect({"message": {"user": name}})


async def test_rpc_over_http_needs_the_key(server: AnyCable) -> None:
    url = f"http://127.0.0.1:{server.server.port}/_anycable/connect"
    async with httpx.AsyncClient(**LOCAL) as http:
        for key, status in ((derive("api-cable"), 401), (derive("rpc-cable"), 200)):
            response = await http.post(url, json={"env": {}}, headers={"Authorization": f"Bearer {key}"})
            assert response.status_code == status
        response = await http.post(url, content="[", headers={"Authorization": f"Bearer {key}"})
        assert response.status_code == 422


@pytest.mark.node
async def test_unmodified_npm_clients(server: AnyCable) -> None:
    status, output, errors = await run_script(
        "behind_anycable.mjs", str(server.port), str(server.broadcast_port), patience=100
    )
    outcomes = [json.loads(line) for line in output.splitlines()]
    assert [outcome for outcome in outcomes if not outcome["ok"]] == []
    assert status == 0, errors
    assert len(outcomes) >= 6


async def test_cable_rpc_stops_gracefully_and_clients_continue_after_its_restart(
    servers: ServerPool, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        anycable = start_anycable(stack, servers, tmp_path, "grpc")
        assert anycable.rpc is not None
        async with Client(anycable.url) as client:
            identifier = await client.subscribe(identify("AuditedChannel", audit=unique("audit")))
            await client.perform(identifier, "increment")
            await client.expect({"message": {"count": 1}})
            assert await asyncio.to_thread(anycable.rpc.terminate) == 0
            await asyncio.to_thread(anycable.rpc.start)
            await client.perform(identifier, "increment")
            await client.expect({"message": {"count": 2}})


async def test_cable_rpc_is_replaced_under_load_and_each_action_is_answered(
    servers: ServerPool, tmp_path: Path
) -> None:
    """The new process listens on the same port before the former one stops, as in a rolling restart."""
    stream, ready, replaced = unique("stream"), asyncio.Semaphore(0), asyncio.Event()

    async def act(client: Client) -> list[Frame]:
        """Perform actions until the process has been replaced. Return the frames that were received meanwhile."""
        await client.subscribe(identify("StreamChannel", streams=[stream]))
        acting = await client.subscribe(identify("AuditedChannel", audit=unique("audit")))
        ready.release()
        frames: list[Frame] = []
        count = 0
        while not replaced.is_set():
            count += 1
            await client.perform(acting, "increment")
            frames += await client.until({"identifier": acting, "message": {"count": count}})
        return frames

    async with AsyncExitStack() as stack:
        anycable = start_anycable(stack, servers, tmp_path, "grpc")
        beside = stack.enter_context(OtherProcess(anycable.server))
        clients = [await stack.enter_async_context(Client(anycable.url)) for _ in range(4)]
        acting = [asyncio.create_task(act(client)) for client in clients]
        for _ in clients:
            await ready.acquire()
        load = Load(beside, [stream])
        current = anycable.rpc
        for round_ in range(2):
            assert current is not None
            (tmp_path / str(round_)).mkdir()
            following = RPCServer(anycable.server, tmp_path / str(round_), current.port)
            await asyncio.to_thread(stack.enter_context, following)
            assert await asyncio.to_thread(current.terminate) == 0
            current = following
        total = await load.stop()
        replaced.set()
        received = await asyncio.gather(*acting)
        await beside.call("broadcast", stream, {"n": total + 1})
        for client, frames in zip(clients, received, strict=True):
            frames += await client.until({"message": {"n": total + 1}})
            numbers = [frame["message"]["n"] for frame in frames if "n" in frame.get("message", ())]
            assert numbers == list(range(1, total + 2))
