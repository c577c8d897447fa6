"""Clients that come back: a process of its own, which takes commands as lines of JSON (see ../fanout/lines.py).

They read no more of a frame than they need: its offset, and when its message was made.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

#: Seconds that anything may take.
PATIENCE = 120.0
#: Loopback addresses to connect from: one has too few ports for many connections that come and go.
SOURCES = 4

_OFFSET = re.compile(rb'"epoch":"([^"]*)","offset":(\d+)\}$')
_TIME = re.compile(rb'"ts":(\d+)')


def masked(text: str) -> bytes:
    """Return a client's frame of a text; its mask is zero, which changes nothing."""
    payload = text.encode()
    size = len(payload)
    head = bytes([0x81, 0x80 | size]) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + payload


@dataclass
class Awaited:
    """What all clients are waited for."""

    count: int
    done: asyncio.Event

    def one(self) -> None:
        """One of them has it."""
        self.count -= 1
        if self.count == 0:
            self.done.set()


class Client(asyncio.Protocol):
    """One client: it keeps its session's id and its position over its connections.

    Args:
        stream: that it subscribes to.
    """

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.identifier = json.dumps({"channel": "BenchChannel", "stream": stream})
        self.sid = self.epoch = ""
        self.offset = 0
        self.restored = self.rejected = self.confirmed = self.complete = False
        #: The offset up to which it waits for messages, and whom it then tells.
        self.until = 0
        self.awaited: Awaited | None = None
        #: Connects anew, if the server ends the connection before that; and how often it did.
        self.back: Callable[[], object] | None = None
        self.again = 0
        #: Messages that were not the next one.
        self.disordered = 0
        self.latencies: list[float] = []
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._upgraded = False

    async def connect(self, url: str, number: int, cookie: str, *, back: bool) -> None:
        """Connect; `back`: with the session and the position that it had."""
        if back:
            loop = asyncio.get_running_loop()
            self.back = lambda: loop.create_task(self.connect(url, number, cookie, back=True))
        address = urlsplit(url)
        self._buffer.clear()
        self._upgraded = self.restored = self.rejected = self.confirmed = self.complete = False
        query = f"?sid={self.sid}" if back else ""
        lines = [
            f"GET {address.path}{query} HTTP/1.1",
            f"Host: {address.netloc}",
            f"Origin: http://{address.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Protocol: actioncable-v1-ext-json",
            *([f"Cookie: {cookie}"] if cookie else []),
        ]
        while True:
            try:
                transport, _ = await asyncio.get_running_loop().create_connection(
                    lambda: self,
                    address.hostname or "",
                    address.port or 0,
                    local_addr=(f"127.0.0.{1 + number % SOURCES}", 0),
                )
                break
            except OSError:
                await asyncio.sleep(0.05)  # the server is not there yet
        self._transport = transport
        transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def connection_lost(self, error: Exception | None) -> None:
        """The connection has gone: come back, if that was to bring something."""
        if self.awaited is not None and self.back is not None and self._transport is not None:
            self.again += 1
            self.back()

    def close(self) -> None:
        """End the connection, if the server has not done so."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        buffer = self._buffer
        buffer += data
        if not self._upgraded:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            if not buffer.startswith(b"HTTP/1.1 101"):
                raise ValueError(bytes(buffer[:end]))
            del buffer[: end + 4]
            self._upgraded = True
        start = 0
        while len(buffer) >= start + 2:
            size, body = buffer[start + 1], start + 2
            if size == 126:
                size, body = int.from_bytes(buffer[body : body + 2], "big"), body + 2
            elif size == 127:
                size, body = int.from_bytes(buffer[body : body + 8], "big"), body + 8
            if len(buffer) < body + size:
                break
            if buffer[start] == 0x81:
                self._take(bytes(buffer[body : body + size]))
            elif buffer[start] == 0x89:
                pong = bytes([0x8A, 0x80 | size]) + bytes(4)
                self._write(pong + buffer[body : body + size])
            start = body + size
        del buffer[:start]

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _take(self, text: bytes) -> None:
        if text.startswith(b'{"identifier"'):
            found = _OFFSET.search(text)
            if found is not None:
                self._message(text, found[1].decode(), int(found[2]))
        elif not text.startswith(b'{"type":"ping"'):
            self._reply(json.loads(text))

    def _message(self, text: bytes, epoch: str, offset: int) -> None:
        if self.epoch and (epoch, offset) != (self.epoch, self.offset + 1):
            self.disordered += 1
        self.epoch, self.offset = epoch, offset
        made = _TIME.search(text)
        if made is not None:
            self.latencies.append(time.time_ns() - int(made[1]))
        self._check()

    def _reply(self, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if kind == "welcome":
            self.restored = bool(frame.get("restored")) and self.identifier in frame["restored_ids"]
            self.sid = frame["sid"]
            command: dict[str, Any] = {"identifier": self.identifier}
            if self.epoch:
                position = {self.stream: {"epoch": self.epoch, "offset": self.offset}}
                command["history"] = {"since": int(time.time()) - 300, "streams": position}
            command["command"] = "history" if self.restored else "subscribe"
            self._write(masked(json.dumps(command)))
        elif kind == "confirm_subscription":
            self.confirmed = True
            self.complete = self.complete or not self.epoch
        elif kind == "confirm_history":
            self.complete = True
        elif kind in ("reject_history", "reject_subscription", "disconnect"):
            self.rejected = self.complete = True
        self._check()

    def _check(self) -> None:
        if self.awaited is not None and self.complete and self.offset >= self.until:
            awaited, self.awaited = self.awaited, None
            awaited.one()


class Clients:
    """All clients of the process."""

    def __init__(self) -> None:
        self.clients: list[Client] = []

    async def connect(self, url: str, streams: list[str], count: int, cookie: str = "") -> dict[str, Any]:
        """Connect clients, fifty at once, and subscribe them to the streams in turn."""
        self.clients = [Client(streams[number % len(streams)]) for number in range(count)]
        for start in range(0, count, 50):
            await self._connect(range(start, min(start + 50, count)), url, cookie, back=False)
        return {}

    async def reach(self, offset: int) -> dict[str, Any]:
        """Wait until every client has had the message of an offset."""
        await self._all(range(len(self.clients)), offset)
        return {}

    async def lost(self) -> dict[str, Any]:
        """End all connections."""
        for client in self.clients:
            client.close()
        return {}

    async def come_back(self, url: str, offset: int, cookie: str = "") -> dict[str, Any]:
        """Let all clients come back at once, and wait until each has had what it missed."""
        for client in self.clients:
            client.disordered, client.again, client.latencies = 0, 0, []
        started = time.monotonic()
        await self._connect(range(len(self.clients)), url, cookie, back=True, offset=offset)
        return {
            "seconds": time.monotonic() - started,
            "restored": sum(client.restored for client in self.clients),
            "rejected": sum(client.rejected for client in self.clients),
            "disordered": sum(client.disordered for client in self.clients),
            "again": sum(client.again for client in self.clients),
        }

    async def latencies(self) -> dict[str, Any]:
        """Return how late messages were since the last time that this was asked, in ms."""
        found = sorted(each / 1e6 for client in self.clients for each in client.latencies)
        for client in self.clients:
            client.latencies = []
        if not found:
            return {"count": 0}
        return {
            "count": len(found),
            "p50_ms": found[len(found) // 2],
            "p99_ms": found[int(0.99 * (len(found) - 1))],
            "max_ms": found[-1],
        }

    async def _connect(self, numbers: range, url: str, cookie: str, *, back: bool, offset: int = 0) -> None:
        waiting = asyncio.create_task(self._all(numbers, offset))
        await asyncio.sleep(0)
        await asyncio.gather(*(self.clients[number].connect(url, number, cookie, back=back) for number in numbers))
        await waiting

    async def _all(self, numbers: range, offset: int) -> None:
        awaited = Awaited(len(numbers), asyncio.Event())
        for number in numbers:
            client = self.clients[number]
            client.until, client.awaited = offset, awaited
            if offset:
                client._check()
        await asyncio.wait_for(awaited.done.wait(), PATIENCE)


async def main() -> None:
    """Take commands until the input ends."""
    clients = Clients()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        try:
            answer = await getattr(clients, command.pop("do"))(**command)
        except TimeoutError:
            answer = {"error": f"not done within {PATIENCE} s"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
