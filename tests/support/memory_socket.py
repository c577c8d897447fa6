"""The socket of a client that reads when a test tells it to."""

from __future__ import annotations

import asyncio
import json
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from reliable_cable.servers.base import Transport


class MemorySocket(Transport):
    """A WebSocket with a buffer for the frames that the client has not read.

    Args:
        frames: whether frames can be written with `write`. If so, the server pauses its application while the buffer is
            full. If not, the server's `send` waits while the buffer is full.
        stamp: called for each frame that the server writes. Its result is returned with the frame.
        high: the buffer becomes full when it has more characters than this.
        low: the buffer stays full until the client has read it down to this number of characters.
    """

    def __init__(
        self, *, frames: bool, stamp: Callable[[], Any] = lambda: None, high: int = 600, low: int = 200
    ) -> None:
        super().__init__(self._asgi_send)
        self.frames = frames
        self.aborted = False
        self.close_code: int | None = None
        self._stamp = stamp
        self._high, self._low = high, low
        self._unread: deque[tuple[str, Any]] = deque()
        self._size = 0
        self._room = asyncio.Event()
        self._room.set()
        self._pause: Callable[[], None] = lambda: None
        self._resume: Callable[[], None] = lambda: None
        if frames:
            self.write = self._write

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register the callbacks that pause and resume the application."""
        if self.frames:
            self._pause, self._resume = pause, resume
            if not self._room.is_set():
                pause()

    def abort(self) -> None:
        """Drop the connection and all unread frames."""
        self.aborted = True
        self._unread.clear()
        self._room.set()

    @property
    def ended(self) -> bool:
        """Whether the server has closed or dropped the connection."""
        return self.aborted or self.close_code is not None

    @property
    def full(self) -> bool:
        """Whether the server must not write."""
        return not self._room.is_set()

    @property
    def readable(self) -> bool:
        """Whether there is a frame to read."""
        return bool(self._unread)

    def read(self, count: float, size: float = math.inf) -> list[tuple[Any, Any]]:
        """Return decoded frames, each with its stamp, until `count` frames or `size` characters have been read."""
        taken: list[tuple[Any, Any]] = []
        while self._unread and count > len(taken) and size > 0:
            text, stamp = self._unread.popleft()
            self._size -= len(text)
            size -= len(text)
            taken.append((json.loads(text), stamp))
        if self._size <= self._low and self.full:
            self._room.set()
            self._resume()
        return taken

    async def _asgi_send(self, message: dict[str, Any]) -> None:
        await self._room.wait()
        if self.ended:
            raise OSError("the socket is closed")
        if "text" in message:
            self._take(message["text"])
        elif message["type"] == "websocket.close":
            self.close_code = message["code"]

    def _write(self, data: bytes) -> None:
        while data and not self.ended:
            size, start = data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            self._take(data[start : start + size].decode())
            data = data[start + size :]

    def _take(self, text: str) -> None:
        self._unread.append((text, self._stamp()))
        self._size += len(text)
        if self._size > self._high and not self.full:
            self._room.clear()
            self._pause()
