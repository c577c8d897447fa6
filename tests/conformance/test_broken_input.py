"""Broken input, unknown input and limits. None of them stops the process or affects other subscriptions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import BASE, EXTENDED, Client, identify, unique
from tests.support.server import Server

DEEP = "[" * 30_000

BROKEN: list[str | bytes] = [
    "",
    "not JSON",
    "null",
    "[]",
    '"subscribe"',
    "{}",
    '{"command":null}',
    '{"command":"dance","identifier":"{}"}',
    '{"command":{"a":1},"identifier":"{}"}',
    '{"command":"subscribe"}',
    '{"command":"subscribe","identifier":7}',
    '{"command":"subscribe","identifier":""}',
    '{"command":"message","identifier":"{}"}',
    '{"command":"message"',
    '{"command":"join","identifier":"{}"}',
    '{"a":' * 5_000,
    DEEP,
    "\u0000\ud7ff\U0010ffff",
    b"\x00\xff\x80",
    b'{"command":"ping"}',
]


@pytest.mark.parametrize("frame", BROKEN, ids=lambda frame: repr(frame)[:40])
async def test_a_broken_frame_changes_nothing_for_other_subscriptions(
    connect: Connect, server: Server, frame: str | bytes
) -> None:
    stream = unique("calm")
    client = await connect()
    identifier = await client.subscribe(identify("StreamChannel", streams=[stream]))
    await client.send_raw(frame)
    await client.nothing()
    await server.call("broadcast", stream, {"n": 1})
    assert await client.messages(identifier, 1) == [{"n": 1}]


@pytest.mark.parametrize(
    "identifier",
    [
        "not JSON",
        "[]",
        "7",
        "{}",
        '{"channel":7}',
        '{"channel":""}',
        '{"channel":"NoSuchChannel"}',
        '{"channel":"Channel"}',
        '{"channel":"os.system"}',
        '{"channel":"__class__"}',
        DEEP,
        '{"channel":"StreamChannel"}',
        '{"channel":"StreamChannel","streams":[7]}',
        '{"channel":"StreamChannel","streams":[""]}',
        json.dumps({"channel": "StreamChannel", "streams": ["x" * 300]}),
        json.dumps({"channel": "StreamChannel", "streams": ["a\u0000b"]}),
    ],
    ids=lambda identifier: repr(identifier)[:40],
)
async def test_a_subscribe_with_an_invalid_identifier_is_rejected(connect: Connect, identifier: str) -> None:
    client = await connect()
    await client.send("subscribe", identifier)
    assert await client.next() == {"type": "reject_subscription", "identifier": identifier}
    await client.nothing()
    await client.subscribe(identify("EchoChannel"))


@pytest.mark.parametrize(
    "data",
    [
        '{"action":"no_such_action"}',
        '{"action":"helper"}',
        '{"action":"subscribed"}',
        '{"action":"transmit"}',
        '{"action":"__init__"}',
        '{"action":7}',
        '{"action":null}',
        "{}",
        "[]",
        "not JSON",
        "",
        None,
        7,
        DEEP,
    ],
    ids=lambda data: repr(data)[:40],
)
async def test_only_actions_can_be_called(connect: Connect, data: Any) -> None:
    client = await connect()
    identifier = await client.subscribe(identify("EchoChannel"))
    await client.send("message", identifier, data=data)
    await client.send("message", identify("EchoChannel", never="subscribed"), data='{"action":"echo"}')
    await client.nothing()
    await client.perform(identifier, "echo", n=1)
    await client.expect({"message": {"echo": {"n": 1}}})


async def test_an_exception_in_a_handler_affects_nothing_else(connect: Connect, server: Server) -> None:
    client = await connect()
    stream = unique("raising")
    bad = identify("RaisingChannel", stream=stream, raises=True)
    await client.send("subscribe", bad)
    await client.expect({"identifier": bad, "message": {"failed": "subscribed"}})
    assert await client.next() == {"type": "reject_subscription", "identifier": bad}
    good = await client.subscribe(identify("RaisingChannel", stream=stream))
    for action in ("fail", "afail"):
        await client.perform(good, action)
        assert await client.next() == {"identifier": good, "message": {"failed": action}}
    await client.perform(good, "tell")
    assert await client.messages(good, 1) == [{"count": 0}], "the state of a failed handler was applied"
    await server.call("broadcast", stream, {"n": 1})
    assert await client.messages(good, 1) == [{"n": 1}]
    assert "RuntimeError: fail raised, as the test asked" in server.log


async def test_a_frame_over_the_limit_is_refused_and_the_connection_stays_open(strict: Server) -> None:
    async with Client(strict.url) as client:
        identifier = await client.subscribe(identify("EchoChannel"))
        await client.perform(identifier, "echo", fill="x" * 2048)
        await client.nothing()
        await client.perform(identifier, "echo", fill="x" * 1500)
        await client.expect({"message": {"echo": {"fill": "x" * 1500}}})


async def test_the_limit_counts_bytes_and_not_characters(strict: Server) -> None:
    async with Client(strict.url) as client:
        identifier = await client.subscribe(identify("EchoChannel"))
        frame = {"command": "message", "identifier": identifier, "data": json.dumps({"action": "echo"})}
        wide = json.dumps({**frame, "fill": "\U0001f600" * 1000}, ensure_ascii=False)
        assert len(wide) < 2048 < len(wide.encode())
        await client.send_raw(wide)
        await client.nothing()


async def test_a_subscription_beyond_the_limit_is_rejected(strict: Server) -> None:
    async with Client(strict.url) as client:
        kept = [await client.subscribe(identify("EchoChannel", n=n)) for n in range(3)]
        beyond = identify("EchoChannel", n=3)
        await client.send("subscribe", beyond)
        assert await client.next() == {"type": "reject_subscription", "identifier": beyond}
        await client.send("unsubscribe", kept[0])
        await client.subscribe(beyond)


@pytest.mark.parametrize("protocol", [EXTENDED, BASE])
async def test_too_many_bad_frames_end_the_connection(connect: Connect, protocol: str) -> None:
    client, bystander = await connect(protocols=[protocol]), await connect()
    identifier = await client.subscribe(identify("EchoChannel"))
    for _ in range(5):
        await client.send_raw("garbage")
    await client.perform(identifier, "echo", n=1)
    await client.expect({"message": {"echo": {"n": 1}}})
    # With 16 more, there are too many. If the client sent many more, which the server does not read, TCP would drop the
    # answer.
    for _ in range(20):
        try:
            await client.send_raw("garbage")
        except Exception:
            break
    assert await client.next() == {"type": "disconnect", "reason": "invalid_request", "reconnect": True}
    await client.closed()
    await bystander.subscribe(identify("EchoChannel"))


async def test_a_session_that_ended_because_of_bad_frames_is_not_restored(connect: Connect) -> None:
    # `disconnect` makes the client forget its session. The server must forget it, too (see Protocol: Disconnects).
    client = await connect()
    await client.subscribe(identify("EchoChannel"))
    for _ in range(100):
        try:
            await client.send_raw("garbage")
        except Exception:
            break
    await client.expect({"type": "disconnect"})
    await client.closed()
    assert "restored" not in (await connect(sid=client.sid)).welcome


async def test_a_flood_of_commands_is_bounded(connect: Connect, server: Server) -> None:
    # While a handler is running, the backlog of the connection must not grow without limit.
    gate = unique("gate")
    client, bystander = await connect(), await connect()
    await client.send("subscribe", identify("GatedChannel", gate=gate))
    await server.call("wait_at_gate", gate, 1)
    before = server.rss
    frame = json.dumps({"command": "message", "identifier": "{}", "data": json.dumps({"fill": "x" * 30_000})})
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for _ in range(1500):
            await client.send_raw(frame)
            sent += len(frame)

    flooding = asyncio.create_task(flood())
    progress = -1
    while progress < sent:  # until the server reads no more from this client, although it serves other clients
        progress = sent
        await bystander.ping(2)
    assert 0 < sent < 45_000_000
    await bystander.subscribe(identify("EchoChannel"))
    assert server.rss - before < 25_000_000
    flooding.cancel()
    await server.call("open_gate", gate)
