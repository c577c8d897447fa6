"""`GRPCServer` answers calls of AnyCable's service and of gRPC's health service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.connection.anycable import grpc_server
from reliable_cable.connection.anycable.grpc_server import GRPCServer
from reliable_cable.connection.anycable.service import RPCService
from reliable_cable.connection.anycable.wire import HEALTH, RPC, as_mapping, as_message, message_class
from reliable_cable.exceptions import ProtocolError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


class RecordingService(RPCService):
    """Keeps the calls, and returns a given answer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Mapping[str, Any], str]] = []
        self.answer: dict[str, Any] = {"status": 1}
        #: A call whose values contain "wait" releases `waiting`, and then waits for `gate`.
        self.waiting, self.gate = asyncio.Semaphore(0), asyncio.Event()

    async def call(self, method: str, values: Mapping[str, Any], sid: str) -> dict[str, Any]:
        if "refuse" in str(values):
            raise ProtocolError("the field is not valid")
        if "wait" in str(values):
            self.waiting.release()
            await self.gate.wait()
        self.calls.append((method, values, sid))
        return self.answer


class GRPCClient:
    """Makes calls as anycable-go does."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(self, method: str, messages: tuple[str, str], fields: Mapping[str, Any], sid: str = "") -> Any:
        request, answer = messages
        make = self._channel.unary_unary(
            f"/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_class(answer).FromString,
        )
        return as_mapping(await make(as_message(request, fields), metadata=(("sid", sid), ("protov", "v1"))))

    async def disconnect(self, identifiers: str) -> Any:
        names = ("anycable.DisconnectRequest", "anycable.DisconnectResponse")
        return await self.call(f"{RPC}/Disconnect", names, {"identifiers": identifiers})

    async def check(self, service: str = "") -> Any:
        names = ("grpc.health.v1.HealthCheckRequest", "grpc.health.v1.HealthCheckResponse")
        return await self.call(f"{HEALTH}/Check", names, {"service": service})

    def watch(self) -> Any:
        make = self._channel.unary_stream(
            f"/{HEALTH}/Watch",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_class("grpc.health.v1.HealthCheckResponse").FromString,
        )
        return make(message_class("grpc.health.v1.HealthCheckRequest")())


@pytest.fixture
def service() -> RecordingService:
    return RecordingService()


@pytest.fixture
async def server(service: RecordingService) -> AsyncIterator[GRPCServer]:
    # The limit is higher than the tests need, because a call counts for a short time after its answer has arrived.
    server = GRPCServer(service, concurrency=20)
    yield server
    await server.stop()


@pytest.fixture
async def client(server: GRPCServer) -> AsyncIterator[GRPCClient]:
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield GRPCClient(channel)


@pytest.mark.parametrize(
    ("method", "messages", "fields", "answer"),
    [
        (
            "Connect",
            ("ConnectionRequest", "ConnectionResponse"),
            {"env": {"url": "ws://a/", "headers": {"cookie": "b=c"}}},
            {"status": "SUCCESS", "identifiers": "{}", "transmissions": ["x"], "env": {"cstate": {"$login": "1"}}},
        ),
        (
            "Command",
            ("CommandMessage", "CommandResponse"),
            {"command": "message", "identifier": "i", "connection_identifiers": "{}", "data": "ü", "env": {"url": "u"}},
            {
                "status": "FAILURE",
                "disconnect": True,
                "stop_streams": True,
                "streams": ["a"],
                "stopped_streams": ["b", "c"],
                "env": {"istate": {"count": "1", "$w": ""}},
                "presence": {"type": "join", "id": "1", "info": "{}"},
            },
        ),
        (
            "Disconnect",
            ("DisconnectRequest", "DisconnectResponse"),
            {"identifiers": "{}", "subscriptions": ["i", "j"], "env": {"istate": {"i": "{}"}}},
            {"status": "SUCCESS"},
        ),
    ],
)
async def test_a_call_and_its_answer_keep_their_fields(
    client: GRPCClient, service: RecordingService, method: str, messages: Any, fields: Any, answer: Any
) -> None:
    service.answer = answer
    request, response = messages
    names = (f"anycable.{request}", f"anycable.{response}")
    assert await client.call(f"{RPC}/{method}", names, fields, "the-sid") == answer
    assert service.calls == [(method.lower(), fields, "the-sid")]


async def test_an_invalid_call_is_refused(client: GRPCClient) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="The call is not valid: the field is not valid") as refusal:
        await client.disconnect("refuse")
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["", RPC, HEALTH])
async def test_the_server_is_healthy_until_it_stops(client: GRPCClient, server: GRPCServer, name: str) -> None:
    assert await client.check(name) == {"status": "SERVING"}
    watch = client.watch()
    assert as_mapping(await watch.read()) == {"status": "SERVING"}
    await server.stop()
    assert as_mapping(await watch.read()) == {"status": "NOT_SERVING"}


async def test_a_stopping_server_ends_its_calls_and_refuses_others_so_that_they_are_repeated(
    client: GRPCClient, server: GRPCServer, service: RecordingService
) -> None:
    running = asyncio.create_task(client.disconnect("wait"))
    await service.waiting.acquire()
    stopping = asyncio.create_task(server.stop())
    while await client.check() != {"status": "NOT_SERVING"}:
        pass
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await client.disconnect("late")
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
    service.gate.set()
    assert await running == {"status": "SUCCESS"}
    await stopping
    assert [call[1]["identifiers"] for call in service.calls] == ["wait"]


async def test_no_call_is_cancelled_by_a_stop(client: GRPCClient, server: GRPCServer) -> None:
    async def call_until_refused() -> grpc.StatusCode:
        while True:
            try:
                await client.disconnect("again")
            except grpc.aio.AioRpcError as error:
                return error.code()

    callers = [asyncio.create_task(call_until_refused()) for _ in range(4)]
    await client.disconnect("once")
    await server.stop()
    assert set(await asyncio.gather(*callers)) == {grpc.StatusCode.UNAVAILABLE}


async def test_the_health_of_another_service_is_unknown(client: GRPCClient) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await client.check("another")
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND


async def test_an_address_in_use_is_an_error(service: RecordingService, server: GRPCServer) -> None:
    port = await server.start("127.0.0.1:0")
    other = GRPCServer(service, concurrency=1)
    with pytest.raises(OSError, match=f"the server cannot listen on 127.0.0.1:{port}x"):
        await other.start(f"127.0.0.1:{port}x")
    await other.stop()


@given(st.dictionaries(TEXTS, TEXTS), st.lists(TEXTS))
def test_maps_and_lists_survive_the_wire(headers: dict[str, str], subscriptions: list[str]) -> None:
    fields = {"subscriptions": subscriptions, "env": {"headers": headers}}
    message = as_message("anycable.DisconnectRequest", fields)
    read = as_mapping(message_class("anycable.DisconnectRequest").FromString(message.SerializeToString()))
    assert read.get("subscriptions", []) == subscriptions
    assert read["env"].get("headers", {}) == headers


async def test_a_client_may_ping_as_often_as_anycable_go(
    service: RecordingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """anycable-go sends a ping every 10 s. gRPC would end the connection after the third one, and repeat its calls."""
    assert grpc_server.PING_INTERVAL < 10_000
    monkeypatch.setattr(grpc_server, "PING_INTERVAL", 1)
    server = GRPCServer(service, concurrency=20)
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.start("127.0.0.1:0"))
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))
        async with asyncio.timeout(10):
            for number in range(10):
                data = number.to_bytes(8)
                writer.write(frame(PING, data))
                while (await received(reader)) != (PING, data):
                    pass
                await asyncio.sleep(0.002)  # more than the interval
    finally:
        writer.close()
        await server.stop()


#: Types of frames of HTTP/2.
SETTINGS, PING, GOAWAY = 4, 6, 7


def frame(type_: int, data: bytes = b"") -> bytes:
    """Return a frame of HTTP/2 that belongs to the connection."""
    return len(data).to_bytes(3) + bytes([type_]) + bytes(5) + data


async def received(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the type and the data of the next frame. Fail if it announces the end of the connection."""
    head = await reader.readexactly(9)
    data = await reader.readexactly(int.from_bytes(head[:3]))
    assert head[3] != GOAWAY, data
    return head[3], data
