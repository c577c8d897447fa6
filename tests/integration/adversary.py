"""Attackers: connections that read nothing and send as much as they can."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.support.client import EXTENDED, identify
from tests.support.server import Server

#: How many frames are encoded at a time.
BLOCK = 200
#: The limit, in bytes, of the attacker's `StreamReader`, which stops receiving when it holds more than twice as much.
READ_BUFFER = 4096

Frames = Iterator[str]

ECHO = identify("EchoChannel")
ROOM = identify("RoomChannel", room="attacked")
RAISING = identify("RaisingChannel", stream="attacked")
STREAM = identify("StreamChannel", streams=["attacked"])


def command(name: str, identifier: str, **body: Any) -> str:
    """Return the frame of a command."""
    return json.dumps({"command": name, "identifier": identifier, **body})


def perform(identifier: str, action: str, **data: Any) -> str:
    """Return the frame that calls an action."""
    return command("message", identifier, data=json.dumps({"action": action, **data}))


def _positions(count: int) -> dict[str, Any]:
    return {"streams": {f"{'s' * 20}{number}": {"epoch": "e" * 20, "offset": 1} for number in range(count)}}


def _numbered(make: Callable[[int], str]) -> Frames:
    return map(make, itertools.count())


#: Each kind of attack: the identifiers to subscribe to, and the frames to send after that.
ATTACKS: dict[str, tuple[Sequence[str], Callable[[], Frames]]] = {
    "pings": ((), lambda: itertools.repeat('{"command":"ping"}')),
    "pongs": ((), lambda: itertools.repeat('{"command":"pong"}')),
    "broken frames": ((), lambda: itertools.repeat("{")),
    "unknown identifiers": ((), lambda: _numbered(lambda n: perform(identify("EchoChannel", n=n), "echo"))),
    "unknown channels": ((), lambda: _numbered(lambda n: command("subscribe", identify(f"NoChannel{n}")))),
    "unknown actions": ((ECHO,), lambda: _numbered(lambda n: perform(ECHO, f"none{n}"))),
    "failing actions": ((RAISING,), lambda: itertools.repeat(perform(RAISING, "fail"))),
    "actions": ((ECHO,), lambda: itertools.repeat(perform(ECHO, "aecho", text="x" * 100))),
    "large actions": ((ECHO,), lambda: itertools.repeat(perform(ECHO, "aecho", text="x" * 50_000))),
    "queries": ((ECHO,), lambda: itertools.repeat(perform(ECHO, "whoami"))),
    "subscribes": (
        (),
        lambda: _numbered(lambda n: command("subscribe", identify("StreamChannel", streams=[f"a{n}"], pad="p" * 1900))),
    ),
    "subscribes and unsubscribes": (
        (),
        lambda: itertools.cycle([command("subscribe", STREAM), command("unsubscribe", STREAM)]),
    ),
    "long identifiers": (
        (),
        lambda: _numbered(lambda n: command("subscribe", identify("EchoChannel", n=n, p="p" * 60_000))),
    ),
    "history": ((STREAM,), lambda: itertools.repeat(command("history", STREAM, history={}))),
    "large history": ((STREAM,), lambda: itertools.repeat(command("history", STREAM, history=_positions(800)))),
    "whispers": ((ROOM,), lambda: itertools.repeat(command("whisper", ROOM, data="x" * 100))),
    "joins": ((ROOM,), lambda: _numbered(lambda n: command("join", ROOM, presence={"id": f"member {n}"}))),
    "lists of members": ((ROOM,), lambda: itertools.repeat(command("presence", ROOM))),
}


def _masked(text: str) -> bytes:
    """Return the frame in which a client sends a string. The mask consists of zeros, which leave the text unchanged."""
    data = text.encode()
    size = len(data)
    head = bytes([0x81, 0x80 | size]) if size < 126 else bytes([0x81, 0xFE]) + size.to_bytes(2, "big")
    return head + bytes(4) + data


class Attacker:
    """One connection that attacks.

    Args:
        server: the server.
        kind: a key of `ATTACKS`.
    """

    def __init__(self, server: Server, kind: str) -> None:
        self._server = server
        self._subscriptions, self._frames = ATTACKS[kind]
        #: How many bytes were sent.
        self.sent = 0
        #: How long, in seconds, the attack lasted before the server closed the connection; None if the server did
        #: not close it.
        self.lasted: float | None = None

    async def run(self, seconds: float) -> None:
        """Attack for some seconds, or until the server closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port, limit=READ_BUFFER)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET /cable HTTP/1.1\r\nHost: 127.0.0.1:{self._server.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {EXTENDED}\r\nOrigin: http://127.0.0.1\r\n\r\n".encode()
        )
        await reader.readuntil(b"welcome")
        for identifier in self._subscriptions:
            writer.write(_masked(command("subscribe", identifier)))
            await reader.readuntil(b"confirm_subscription")
        # From here on, nothing is read.
        began = time.monotonic()
        frames = self._frames()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    block = b"".join(_masked(text) for text in itertools.islice(frames, BLOCK))
                    while block:
                        writer.write(block[:16_384])
                        await writer.drain()
                        self.sent += len(block[:16_384])
                        block = block[16_384:]
                        # Let other tasks of the test run, even if no write has to wait.
                        await asyncio.sleep(0)
        except TimeoutError:
            pass
        except OSError:
            self.lasted = time.monotonic() - began
        finally:
            writer.transport.abort()
