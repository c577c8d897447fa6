"""A TCP proxy on the loopback whose connections a test can reset, as a failing network does."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


class _Link:
    """One client's connection and the one to the server behind it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.writers = (client, server)

    def reset(self) -> None:
        """Close both connections with a TCP RST, throwing away what is under way."""
        for writer in self.writers:
            connection: socket.socket = writer.get_extra_info("socket")
            if connection.fileno() != -1:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class TcpProxy:
    """Forwards 127.0.0.1:`port` to another port of the loopback, in a thread of its own.

    Args:
        target: the server's port.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.withheld = threading.Event()
        self._target = target
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._withholding = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", 0), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> int:
        """Reset every connection, and every new one until `restore`; return how many were open."""
        return self._call(self._cut)

    def restore(self) -> None:
        """Let connections through again, and what they send."""
        self._call(self._restore)

    def withhold(self) -> None:
        """Keep back what clients send over WebSockets opened from now on, after the handshake.

        `withheld` is set once there is such a command: the server will not get it, so it stays unanswered.
        """
        self.withheld.clear()
        self._withholding = True

    def _call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _cut(self) -> int:
        self._refusing = True
        links, self._links = self._links, set()
        for link in links:
            link.reset()
        return len(links)

    def _restore(self) -> None:
        self._refusing = self._withholding = False

    async def _close(self) -> None:
        self._server.close()
        self._cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        link = _Link(writer, writer)
        try:
            if self._refusing:
                return link.reset()
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the server is down: tell the client as the kernel would
            return link.reset()
        link = _Link(writer, server_writer)
        if self._refusing:
            return link.reset()
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, server_writer, hold=self._withholding))
                both.create_task(self._pump(server_reader, writer, hold=False))
        finally:
            self._links.discard(link)
            link.reset()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, hold: bool) -> None:
        """Forward one direction until it ends, then end it on the other side."""
        upgraded = False
        try:
            while data := await reader.read(65536):
                if hold and upgraded:
                    self.withheld.set()
                    continue
                upgraded = upgraded or b"upgrade: websocket" in data.lower()
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            # One side was reset: so is the other.
            writer.transport.abort()
