"""A TCP proxy on this machine that simulates faults of networks: resets, refusals, stalls and lost data."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Self

_SUBSCRIBE = re.compile(rb"\r\n[PS]?SUBSCRIBE\r\n", re.IGNORECASE)
_UPGRADE = re.compile(rb"upgrade: websocket", re.IGNORECASE)
#: How many bytes of earlier data are searched again with new data, to find a pattern that spans both.
_OVERLAP = 64
_CHUNK = 65536


class Link:
    """The connection of a client, and the one that the proxy opened to the server for it."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        #: Whether the client has sent a SUBSCRIBE, as Redis clients do on their pub/sub connection.
        self.subscribed = False
        self._writers = writers
        self._sent = b""
        self._trap: _Trap | None = None

    def reset(self) -> None:
        """Reset both connections. Data in transit is lost."""
        for writer in self._writers:
            connection: socket.socket = writer.get_extra_info("socket")
            if connection.fileno() != -1:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def closed(self) -> None:
        """Wait until both connections are closed."""
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    def request(self, data: bytes, traps: list[_Trap]) -> None:
        """Search data that the client sends for a SUBSCRIBE, and for the patterns of `lose_reply`."""
        text = self._sent[-_OVERLAP:] + data
        self._sent = text[-_OVERLAP:]
        self.subscribed = self.subscribed or _SUBSCRIBE.search(text) is not None
        for trap in traps:
            if self._trap is None and trap.pattern in text:
                traps.remove(trap)
                self._trap = trap
                break

    def loses(self, data: bytes, traps: list[_Trap]) -> bool:
        """Return whether the proxy must drop this answer because of `lose_reply`."""
        trap, self._trap = self._trap, None
        if trap is None:
            return False
        if data.startswith(b"-"):  # a Redis error: the request had no effect, so lose the reply of the next one
            traps.append(trap)
            return False
        trap.sprung.set()
        return True


class _Trap:
    def __init__(self, pattern: bytes) -> None:
        self.pattern = pattern
        self.sprung = asyncio.Event()


class FaultProxy:
    """Forwards connections to 127.0.0.1:`port` to other ports of this machine. Use it with `async with`.

    Args:
        targets: the ports of the servers. Each connection is forwarded to a random one. The servers may start later.
    """

    def __init__(self, *targets: int) -> None:
        self.port = 0
        self._targets = targets
        self._links: dict[Link, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._traps: list[_Trap] = []
        self._refusing = False
        self._withholding = False
        #: Set when data was discarded because of `withhold`.
        self.withheld = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.resume()
        self.interrupt()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    # -- faults -------------------------------------------------------------------------------------------------------

    @property
    def links(self) -> tuple[Link, ...]:
        """The open connections, the oldest first."""
        return tuple(self._links)

    def cut(self, links: Iterable[Link] | None = None) -> int:
        """Reset the given connections, or all connections. Return how many of them were open."""
        chosen = [link for link in (self.links if links is None else links) if link in self._links]
        for link in chosen:
            del self._links[link]
            link.reset()
        return len(chosen)

    def refuse(self) -> None:
        """Reset each new connection at once, until `accept` is called."""
        self._refusing = True

    def interrupt(self) -> int:
        """Reset all connections, and each new one until `accept` is called. Return how many were open."""
        self.refuse()
        return self.cut()

    def withhold(self) -> None:
        """Discard the commands of clients, on each WebSocket that is opened before `accept` is called.

        The handshakes are forwarded, but the commands stay unanswered. `accept` does not change this for the
        WebSockets that are already open.
        """
        self.withheld.clear()
        self._withholding = True

    def accept(self) -> None:
        """Forward new connections again, and all of their data."""
        self._refusing = self._withholding = False

    def stall(self) -> None:
        """Forward nothing in either direction until `resume` is called. Connections stay open."""
        self._flowing.clear()

    def resume(self) -> None:
        """Forward the data that was held back, and all later data."""
        self._flowing.set()

    def lose_reply(self, pattern: bytes) -> asyncio.Event:
        """Forward the next request that contains `pattern`, and reset its connection when the server answers.

        This works with clients that wait for each answer. If the answer is a Redis error, it is forwarded, and the
        answer to the next such request is lost.

        Args:
            pattern: at most 64 bytes of the request.

        Returns:
            An event that is set when an answer was lost.
        """
        trap = _Trap(pattern)
        self._traps.append(trap)
        return trap.sprung

    def lose_nothing(self) -> None:
        """Cancel the calls of `lose_reply` for which no request has come yet."""
        self._traps.clear()

    def move(self, *targets: int) -> None:
        """Forward new connections to other ports, as a DNS name or a Kubernetes service does after a failover.

        Open connections keep their server; `cut` resets them.

        Args:
            targets: the ports of the servers, as for the constructor.
        """
        self._targets = targets

    # -- forwarding ---------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._refusing:
            return Link(writer).reset()
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", random.choice(self._targets))
        except OSError:  # the server is down
            return Link(writer).reset()
        link = Link(writer, server_writer)
        if self._refusing:
            return link.reset()
        self._links[link] = None
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(link, reader, server_writer))
                both.create_task(self._answers(link, server_reader, writer))
        finally:
            self._links.pop(link, None)
            link.reset()
            await link.closed()

    async def _requests(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        withholding, upgraded = self._withholding, False
        try:
            while data := await reader.read(_CHUNK):
                await self._flowing.wait()
                if withholding and upgraded:
                    self.withheld.set()
                    continue
                upgraded = upgraded or _UPGRADE.search(data) is not None
                link.request(data, self._traps)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            link.reset()

    async def _answers(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK):
                await self._flowing.wait()
                if link.loses(data, self._traps):
                    return link.reset()
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            link.reset()
