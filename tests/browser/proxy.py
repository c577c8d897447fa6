"""A TCP proxy on the loopback whose connections a test can reset, as a failing network does."""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType
from typing import Self


class _Link:
    """The connection of a client, and the one that the proxy opened to the server for it."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers

    def reset(self) -> None:
        """Reset both connections. Data in transit is lost."""
        for writer in self._writers:
            connection: socket.socket = writer.get_extra_info("socket")
            if connection.fileno() != -1:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class TcpProxy:
    """Forwards 127.0.0.1:`port` to another port of the loopback. Use it with `async with`.

    Args:
        target: the port of the server.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        #: Set when data were discarded because of `withhold`.
        self.withheld = asyncio.Event()
        self._target = target
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._withholding = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def cut(self) -> int:
        """Reset all connections, and each new one until `restore` is called. Return how many were open."""
        self._refusing = True
        links, self._links = self._links, set()
        for link in links:
            link.reset()
        return len(links)

    def withhold(self) -> None:
        """Discard the commands of clients, on each WebSocket that is opened before `restore` is called.

        The handshakes are forwarded, but the commands stay unanswered. `restore` does not change this for the
        WebSockets that are already open.
        """
        self.withheld.clear()
        self._withholding = True

    def restore(self) -> None:
        """Accept new connections again, and forward all of their data."""
        self._refusing = self._withholding = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        link = _Link(writer)
        if self._refusing:
            return link.reset()
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the server is down
            return link.reset()
        link = _Link(writer, server_writer)
        if self._refusing:
            return link.reset()
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(reader, server_writer, withhold=self._withholding))
                both.create_task(self._forward(server_reader, writer))
        finally:
            self._links.discard(link)
            link.reset()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, withhold: bool = False
    ) -> None:
        """Forward data in one direction until the connection is closed, and then close the other side."""
        upgraded = False
        try:
            while data := await reader.read(65536):
                if withhold and upgraded:
                    self.withheld.set()
                    continue
                upgraded = upgraded or b"upgrade: websocket" in data.lower()
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.transport.abort()
