"""Measures what a broadcast costs a server for each reader of server-sent events: `python -m tests.benchmarks events`.

The same messages are sent to clients with WebSockets, for comparison. Each message is sent to one stream. Readers read
one stream, or four.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote, urlencode

import httpx

from tests.benchmarks.fanout.process import usage
from tests.benchmarks.fanout.servers import DAPHNE, PROJECT, Running, Subject, running
from tests.benchmarks.stage import stage

SUBJECTS = (
    Subject("uvicorn", "cable_serve", PROJECT),
    Subject("daphne", "cable_serve", PROJECT, options=DAPHNE),
)
#: A string that each message contains once.
MARK = b"a-message-of-the-benchmark"
#: How long, in seconds, to wait for all clients.
PATIENCE = 60.0
#: The number of rounds. The lowest of their costs is the result, because other work on the machine only adds to it.
ROUNDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--readers", type=int, default=500, help="number of clients (500)")
    parser.add_argument("--messages", type=int, default=40, help="messages in a round (40)")


def run(options: argparse.Namespace) -> int:
    """Measure the servers, print a line for each kind of client, and return the exit code."""
    with stage(with_floor=False) as resources:
        for subject in SUBJECTS:
            for name, connect in KINDS.items():
                with running(subject, resources.environment, resources.folder / "log") as server:
                    result = asyncio.run(_measure(server, connect, options.readers, options.messages))
                sys.stdout.write(f"{subject.name:8} {name:26} {result}\n")
                sys.stdout.flush()
    return 0


@dataclass
class Client(asyncio.Protocol):
    """A client that counts the messages and the confirmations that it receives.

    Args:
        requests: the requests to send. The first is sent at once, and each other one after a response.
    """

    requests: list[bytes]
    messages: int = 0
    confirmations: int = 0
    changed: Callable[[], None] = field(default=lambda: None)
    _rest: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.requests.pop(0))

    def data_received(self, data: bytes) -> None:
        """Count messages and confirmations, and send the next request."""
        if self.requests:
            self.transport.write(self.requests.pop(0))
        # A searched string may be received in two pieces, and must not be counted twice.
        text = self._rest + data
        for kind, mark in (("messages", MARK), ("confirmations", b'"type":"confirm_subscription"')):
            count = text.count(mark) - self._rest.count(mark)
            if count:
                setattr(self, kind, getattr(self, kind) + count)
        self._rest = text[-40:]
        self.changed()


def _identifier(stream: str) -> str:
    return json.dumps({"channel": "BenchChannel", "stream": stream})


def _reader(streams: int) -> list[bytes]:
    query = urlencode([("identifier", _identifier(f"events:{number}")) for number in range(streams)], quote_via=quote)
    return [f"GET /events?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()]


def _web_socket() -> list[bytes]:
    key = base64.b64encode(os.urandom(16)).decode()
    handshake = (
        "GET /cable HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nConnection: Upgrade\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Protocol: actioncable-v1-ext-json\r\n\r\n"
    )
    command = json.dumps({"command": "subscribe", "identifier": _identifier("events:0")}).encode()
    assert len(command) < 126
    # A mask of zeros changes nothing.
    return [handshake.encode(), bytes((0x81, 0x80 | len(command), 0, 0, 0, 0)) + command]


KINDS: Mapping[str, tuple[Callable[[], list[bytes]], int]] = {
    "WebSocket": (_web_socket, 1),
    "events, one stream": (partial(_reader, 1), 1),
    "events, four streams": (partial(_reader, 4), 4),
}


async def _measure(server: Running, kind: tuple[Callable[[], list[bytes]], int], readers: int, messages: int) -> str:
    """Return the costs of a kind of client, as a string."""
    make, streams = kind
    changed = asyncio.Event()
    clients = [Client(make(), changed=changed.set) for _ in range(readers)]

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                changed.clear()
                await changed.wait()

    loop = asyncio.get_running_loop()
    before = usage(server.pid)
    port = httpx.URL(server.http).port or 80
    for client in clients:
        await loop.create_connection(partial(_same, client), "127.0.0.1", port)
        await until(lambda client=client: client.confirmations >= streams)  # type: ignore[misc]
    connected = usage(server.pid)
    connecting = (connected.cpu - before.cpu) / readers
    costs = []
    async with httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
        for _ in range(ROUNDS):
            target = clients[0].messages + messages
            before = usage(server.pid)
            for number in range(messages):
                data = json.dumps({"n": number, "mark": MARK.decode(), "text": "x" * 150})
                body = {"stream": f"events:{number % streams}", "data": data}
                response = await http.post("/direct", json=body, headers={"Authorization": "Bearer bench"})
                response.raise_for_status()
                wanted = target - messages + number + 1
                await until(lambda wanted=wanted: all(client.messages >= wanted for client in clients))  # type: ignore[misc]
            costs.append((usage(server.pid) - before).cpu / (messages * readers))
    for client in clients:
        assert client.messages == ROUNDS * messages
        client.transport.abort()
    return f"{min(costs) * 1e6:6.1f} µs of CPU per delivery, {connecting * 1e6:6.0f} µs per connection"


def _same(client: Client) -> Client:
    return client
