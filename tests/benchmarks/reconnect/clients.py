"""A process with many clients that can reconnect. It reads commands as lines of JSON, see ../fanout/lines.py.

To be fast, the clients read only the offset and the time of each message.
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

#: How long, in seconds, a command may take.
PATIENCE = 120.0
#: The number of loopback addresses to connect from. One address has too few ports for many short connections.
SOURCES = 4

_OFFSET = re.compile(rb'"epoch":"([^"]*)","offset":(\d+)\}$')
_TIME = re.compile(rb'"ts":(\d+)')


def masked(text: str) -> bytes:
    """Return the frame in which a client sends a string. The mask consists of zeros, which leave the text unchanged."""
    payload = text.encode()
    size = len(payload)
    head = bytes([0x81, 0x80 | size]) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + payload


@dataclass
class Awaited:
    """A condition that each of several clients will fulfil once.

    Args:
        count: the number of clients that have not fulfilled it.
        done: set when all clients have fulfilled it.
    """

    count: int
    done: asyncio.Event

    def fulfil(self) -> None:
        """Record that one client has fulfilled the condition."""
        self.count -= 1
        if self.count == 0:
            self.done.set()


class Client(asyncio.Protocol):
    """A client that keeps its session id and its position when it reconnects.

    Args:
        stream: the stream to which the client subscribes.
    """

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.identifier = json.dumps({"channel": "BenchChannel", "stream": stream})
        self.sid = self.epoch = ""
        self.offset = 0
        self.restored = self.rejected = self.confirmed = self.complete = False
        #: The offset that the client waits for, and the condition that it then fulfils.
        self.until = 0
        self.awaited: Awaited | None = None
        #: Called to reconnect if the server closes the connection before the client has fulfilled its condition.
        self.retry: Callable[[], object] | None = None
        #: How often the client has called `retry`.
        self.retries = 0
        #: The number of messages that did not directly follow the previous one, by their epoch and offset.
        self.disordered = 0
        self.latencies: list[float] = []
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._upgraded = False

    async def connect(self, url: str, number: int, cookie: str, *, restoring: bool) -> None:
        """Open a connection. The response and the messages are handled by `data_received`.

        Args:
            url: the URL of the server.
            number: the number of the client, which determines its source address.
            cookie: the header `Cookie`; empty: none.
            restoring: whether to ask the server to restore the session.
        """
        if restoring:
            loop = asyncio.get_running_loop()
            self.retry = lambda: loop.create_task(self.connect(url, number, cookie, restoring=True))
        address = urlsplit(url)
        self._buffer.clear()
        self._upgraded = self.restored = self.rejected = self.confirmed = self.complete = False
        query = f"?sid={self.sid}" if restoring else ""
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
                await asyncio.sleep(0.05)  # the server is not listening yet
        self._transport = transport
        transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def connection_lost(self, error: Exception | None) -> None:
        """Reconnect if the client has not fulfilled its condition."""
        if self.awaited is not None and self.retry is not None and self._transport is not None:
            self.retries += 1
            self.retry()

    def close(self) -> None:
        """Abort the connection."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def data_received(self, data: bytes) -> None:
        """Parse the received data, and process all complete frames."""
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
                self._process(bytes(buffer[body : body + size]))
            elif buffer[start] == 0x89:
                pong = bytes([0x8A, 0x80 | size]) + bytes(4)
                self._write(pong + buffer[body : body + size])
            start = body + size
        del buffer[:start]

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _process(self, text: bytes) -> None:
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
        sent_at = _TIME.search(text)
        if sent_at is not None:
            self.latencies.append(time.time_ns() - int(sent_at[1]))
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
            awaited.fulfil()


class Clients:
    """The clients that this process runs. Each public method executes one command, and returns its result."""

    def __init__(self) -> None:
        self.clients: list[Client] = []

    async def connect(self, url: str, streams: list[str], count: int, cookie: str = "") -> dict[str, Any]:
        """Connect clients, fifty at the same time, and subscribe each to one of the streams."""
        self.clients = [Client(streams[number % len(streams)]) for number in range(count)]
        for start in range(0, count, 50):
            await self._connect(range(start, min(start + 50, count)), url, cookie, restoring=False)
        return {}

    async def reach(self, offset: int) -> dict[str, Any]:
        """Wait until all clients have received the message at an offset."""
        await self._all(range(len(self.clients)), offset)
        return {}

    async def disconnect(self) -> dict[str, Any]:
        """Abort all connections."""
        for client in self.clients:
            client.close()
        return {}

    async def reconnect(self, url: str, offset: int, cookie: str = "") -> dict[str, Any]:
        """Reconnect all clients at the same time, and wait until each has received the messages that it missed."""
        for client in self.clients:
            client.disordered, client.retries, client.latencies = 0, 0, []
        started = time.monotonic()
        await self._connect(range(len(self.clients)), url, cookie, restoring=True, offset=offset)
        return {
            "seconds": time.monotonic() - started,
            "restored": sum(client.restored for client in self.clients),
            "rejected": sum(client.rejected for client in self.clients),
            "disordered": sum(client.disordered for client in self.clients),
            "again": sum(client.retries for client in self.clients),
        }

    async def latencies(self) -> dict[str, Any]:
        """Return the number of messages since the last call, and percentiles of their latency in ms."""
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

    async def _connect(self, numbers: range, url: str, cookie: str, *, restoring: bool, offset: int = 0) -> None:
        waiting = asyncio.create_task(self._all(numbers, offset))
        await asyncio.sleep(0)
        await asyncio.gather(
            *(self.clients[number].connect(url, number, cookie, restoring=restoring) for number in numbers)
        )
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
    """Execute the commands on the standard input, until it ends."""
    clients = Clients()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        try:
            answer = await getattr(clients, command.pop("do"))(**command)
        except TimeoutError:
            answer = {"error": f"the command took longer than {PATIENCE:g} s"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
