"""Sends random and mutated frames for a limited time. The server must survive, and other clients must not notice."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import random
import time
from collections.abc import Callable
from typing import Any

from websockets.exceptions import WebSocketException

from tests.support.client import BASE, EXTENDED, Client, identify, unique
from tests.support.server import Server

SECONDS = 3.0
FUZZERS = 4

IDENTIFIERS = [
    identify("EchoChannel"),
    identify("StreamChannel", streams=["fuzz:1", "fuzz:2"]),
    identify("AsyncStreamChannel", streams=["fuzz:1"]),
    identify("RoomChannel", room="fuzz:room"),
    identify("LobbyChannel", news="fuzz:1", lobby="fuzz:room", id=1),
    identify("AuditedChannel", audit="fuzz:audit", streams=["fuzz:1"]),
    identify("AuditedChannel", audit="fuzz:audit", fickle=True),
    identify("RaisingChannel", stream="fuzz:2"),
    identify("RejectingChannel", stream="fuzz:2"),
    identify("$pubsub", signed_stream_name="abc--def"),
    identify("$pubsub", stream_name="fuzz:1"),
    identify("NoSuchChannel"),
]
ACTIONS = [
    "echo",
    "aecho",
    "whoami",
    "awhoami",
    "start",
    "stop",
    "stop_all",
    "say",
    "fail",
    "increment",
    "rename",
    "hide",
]
ODDITIES: list[Any] = [
    *[None, True, False, 0, -1, 1, 1e308, -0.5, 2**63, 10**40, "", "x", "\u0000", "\ud800", "😀", "é" * 300],
    *[[], {}, [[]], {"": {}}, {"channel": "EchoChannel"}, ["fuzz:1"], "subscribe", '{"action":"echo"}'],
]


def oddity(rng: random.Random) -> Any:
    """Return a copy of an unexpected value. It is a copy, because mutations may change the value."""
    return copy.deepcopy(rng.choice(ODDITIES))


def frame(rng: random.Random) -> dict[str, Any]:
    """Return a valid frame."""
    identifier = rng.choice(IDENTIFIERS)
    history = {"since": rng.choice([0, 1, time.time(), 1e12]), "streams": {"fuzz:1": {"epoch": "e", "offset": 3}}}
    presence = {"id": rng.choice(["1", 7, "impostor"]), "info": oddity(rng)}
    data = json.dumps({"action": rng.choice(ACTIONS), "text": "hi", "stream": "fuzz:3", "id": 1})
    bodies: dict[str, dict[str, Any]] = {
        "subscribe": rng.choice([{}, {"history": history}, {"presence": presence}]),
        "unsubscribe": {},
        "message": {"data": data},
        "history": {"history": history},
        "whisper": {"data": oddity(rng)},
        "join": {"presence": presence},
        "leave": {},
        "presence": {"data": {"return_records": rng.choice([True, False])}},
        "pong": {},
        "ping": {},
    }
    command = rng.choices(list(bodies), weights=[5, 1, 4, 2, 1, 2, 1, 1, 1, 1])[0]
    return {"command": command, "identifier": identifier, **bodies[command]}


def with_odd_value(rng: random.Random) -> str:
    """Return a frame as text. One of its values, at any depth, is replaced by an unexpected value, or is missing."""
    value: Any = frame(rng)
    place = value
    while True:
        key = rng.choice(list(place))
        if not (isinstance(place[key], dict) and place[key] and rng.random() < 0.6):
            break
        place = place[key]
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = oddity(rng)
    return json.dumps(value)


def with_odd_text(rng: random.Random) -> str:
    """Return the text of a frame, with a part removed, repeated or replaced."""
    text = json.dumps(frame(rng))
    start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    middle = rng.choice(["", text[start:end] * 3, "".join(chr(rng.randrange(1, 0xD7FF)) for _ in range(9)), "[" * 9999])
    return text[:start] + middle + text[end:]


MUTATIONS: list[Callable[[random.Random], str | bytes]] = [
    lambda rng: json.dumps(frame(rng)),
    with_odd_value,
    with_odd_text,
    lambda rng: json.dumps(oddity(rng)),
    lambda rng: rng.randbytes(rng.randrange(200)),
    lambda rng: "x" * rng.choice([0, 1, 70_000]),
]
WEIGHTS = [6, 4, 2, 1, 1, 0.2]


async def fuzz(server: Server, rng: random.Random, deadline: float) -> int:
    """Send valid and invalid frames until the deadline, and reconnect when necessary. Return how many were sent."""
    sent, sid = 0, ""
    while time.monotonic() < deadline:
        client = Client(server.url, protocols=[rng.choice([EXTENDED, BASE])], sid=sid, query=rng.choice(["", "pi=x"]))
        with contextlib.suppress(WebSocketException, OSError, AssertionError, TimeoutError):
            try:
                await client.__aenter__()
                sid = rng.choice([sid, str(client.welcome.get("sid", "")), "nonsense"])
                for _ in range(rng.randrange(1, 200)):
                    await client.send_raw(rng.choices(MUTATIONS, WEIGHTS)[0](rng))
                    sent += 1
                    if time.monotonic() >= deadline:
                        break
            finally:
                await (client.cut() if client.alive and rng.random() < 0.5 else client.close())
    return sent


async def knock(server: Server, rng: random.Random, deadline: float) -> None:
    """Send random bytes until the deadline: on new connections, inside a request, and after a handshake."""
    while time.monotonic() < deadline:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            with contextlib.suppress(OSError):
                head = b"GET /cable HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                key = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
                offer = f"Sec-WebSocket-Protocol: {EXTENDED}\r\nOrigin: http://127.0.0.1\r\n\r\n".encode()
                writer.write(rng.choice([head + key + offer, head, b""]) + rng.randbytes(rng.randrange(1, 300)))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await reader.read(1000)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_invalid_frames_harm_neither_the_server_nor_other_clients(
    server: Server, record_property: Callable[[str, object], None]
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    record_property("seed", seed)
    calm = unique("calm")
    async with Client(server.url) as bystander:
        identifier = await bystander.subscribe(identify("StreamChannel", streams=[calm]))
        pid = server.pid
        # A warm-up, because memory that is allocated only once is not a leak.
        await fuzz(server, random.Random(seed), time.monotonic() + 0.5)
        before = server.rss
        deadline = time.monotonic() + SECONDS
        fuzzing = [
            asyncio.create_task(fuzz(server, random.Random(seed + number), deadline)) for number in range(FUZZERS)
        ]
        knocking = asyncio.create_task(knock(server, random.Random(seed), deadline))
        count = 0
        while time.monotonic() < deadline:
            count += 1
            await server.call("broadcast", calm, {"n": count})
        sent = await asyncio.gather(*fuzzing)
        await knocking
        assert server.alive, f"seed {seed}:\n{server.log[-3000:]}"
        assert server.pid == pid
        assert sum(sent) > 500, "the fuzzers did not send enough frames"
        frames = [await bystander.expect({"identifier": identifier}) for _ in range(count)]
        assert [frame["offset"] for frame in frames] == list(range(1, count + 1)), f"seed {seed}"
        await bystander.nothing()
        assert server.rss - before < 50_000_000, f"seed {seed}"
    for trouble in ("never retrieved", "Exception in ASGI", "Unhandled", "exception in callback"):
        assert trouble.lower() not in server.log.lower(), f"seed {seed}"
