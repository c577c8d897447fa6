"""What goes out on one connection: written at once while the socket takes it, kept back, within bounds, while not."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any

from reliable_cable.protocol.frames import Frame

logger = logging.getLogger("reliable_cable")

Send = Callable[[dict[str, Any]], Awaitable[None]]

#: Seconds in which the client of a full socket that is waited for must have taken something; and where nobody knows
#: what the kernel has of it, which is several megabytes: a slow client takes its time for these.
STALL_TIME = 10.0
BLIND_STALL_TIME = 60.0

#: The queue of everybody who has nothing queued: it takes nothing, and is never filled.
_EMPTY: deque[str] = deque(maxlen=0)


def wire(text: str, form: type[Frame] = Frame) -> bytes:
    """Return a text as a WebSocket frame; one that goes to many is made once.

    Args:
        text: of the message; a frame that is in neither the plain form nor this one is made again.
        form: in which the client takes frames.
    """
    if isinstance(text, Frame) and type(text) in (Frame, form):
        return text.wire
    return form(text).wire


def _tell_nobody() -> None:
    """Take the place of who was told."""


def _nobody_knows() -> None:
    """Take the place of who knows how much was not taken yet."""


class _Resumed:
    """Awaits the rest of a coroutine that was started by hand and waits for `waited`."""

    __slots__ = ("_coroutine", "_waited")

    def __init__(self, coroutine: Generator[Any, Any, None], waited: Any) -> None:
        self._coroutine = coroutine
        self._waited = waited

    def __await__(self) -> Generator[Any, Any, None]:
        waited = self._waited
        while True:
            try:
                value = yield waited
            except BaseException as error:  # handed on to the coroutine
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, value)
            try:
                waited = step()
            except StopIteration:
                return


class Outbox:
    """Frames to one client, in order.

    A fan-out never waits for a socket: `push` drives the server's `send` once, and if that suspends, a task of this
    connection's own finishes it while further frames queue here. So do frames while the server says, through `pause`,
    that its buffer is full. What can be read from a store later fills no more than half of the limit, what readers hold
    back a quarter: the rest is for what can only be sent.

    Args:
        send: the ASGI `send`.
        limit: how much may queue here, in characters; more calls `overflow`, once.
        overflow: called when the client turns out to be too slow: too much waits, or nothing moved for `STALL_TIME`
            (`BLIND_STALL_TIME`) while something waited for it (`drained`).
        write: writes a WebSocket frame and does not wait, where the server offers that (servers/base.py).
        form: in which the client takes such frames.
        unsent: returns how many bytes were written and not taken by the client yet; None: nobody knows.
    """

    __slots__ = (
        "_blocked",
        "_closed",
        "_drained",
        "_limit",
        "_moved",
        "_overflow",
        "_paused",
        "_queue",
        "_reading",
        "_send",
        "_size",
        "_task",
        "_unsent",
        "_unsent_then",
        "_watch",
        "_write",
        "form",
        "held",
        "ready",
    )

    def __init__(
        self,
        send: Send,
        *,
        limit: int,
        overflow: Callable[[], None],
        write: Callable[[bytes], None] | None = None,
        form: type[Frame] = Frame,
        unsent: Callable[[], int | None] = _nobody_knows,
    ) -> None:
        self._send = send
        self._write = write
        #: In which the client takes frames that are written.
        self.form = form
        #: Writes a frame at once; None while that is not possible, or never is: then `push` does what is.
        self.ready = write
        self._limit = limit
        self._overflow = overflow
        self._queue = _EMPTY
        self._size = 0
        #: Characters that readers of this connection hold back until they are live.
        self.held = 0
        self._paused = False
        self._blocked = False
        #: Judges whether a full socket takes anything; and whether it has, since it judged last.
        self._watch: asyncio.TimerHandle | None = None
        self._moved = False
        self._unsent = unsent
        self._unsent_then: int | None = None
        self._reading: asyncio.Lock | None = None
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing is sent any more."""
        return self._closed

    @property
    def blocked(self) -> bool:
        """Whether what is pushed has to wait."""
        return self._blocked and not self._closed

    def push(self, text: str, *, kept: bool = False) -> bool:
        """Send a frame as soon as the socket takes it, after those before it.

        Args:
            text: the frame.
            kept: whether it can be read from a store later.

        Returns:
            False if it was not taken, since it is kept and much waits already.
        """
        if self.ready is not None:
            try:
                self.ready(wire(text, self.form))
            except Exception:
                self.failed()
            return True
        if self._closed:
            return True
        if not self._blocked:
            self._drive({"type": "websocket.send", "text": text})
            return True
        if kept and self._size + self.held + len(text) > self._limit // 2:
            return False
        if self._queue is _EMPTY:
            self._queue = deque()
        self._queue.append(text)
        self._size += len(text)
        if self._size + self.held > self._limit:
            self._give_up()
        return True

    def can_hold(self, size: int) -> bool:
        """Whether a reader may hold back so many characters more."""
        return self.held + size <= self._limit // 4

    def _give_up(self) -> None:
        self.abandon()
        try:
            self._overflow()
        except Exception:
            # The fan-out that brought this goes on to the others.
            logger.exception("A slow client could not be dropped.")

    def push_all(self, frames: Sequence[str]) -> None:
        """Send frames, in one write where the server takes frames."""
        if self.ready is None or len(frames) < 2:
            for frame in frames:
                self.push(frame)
            return
        try:
            self.ready(b"".join([wire(frame, self.form) for frame in frames]))
        except Exception:
            self.failed()

    def pause(self) -> None:
        """Keep frames here from now on: the server's buffer is full."""
        self._paused = self._blocked = True
        self.ready = None

    def resume(self) -> None:
        """Send what was kept: the server's buffer has room."""
        self._paused = False
        self._moved = True
        if self._closed or not self._blocked:
            return
        if self._write is not None:
            self._write_queued(self._write)
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._flush())

    def _write_queued(self, write: Callable[[bytes], None]) -> None:
        try:
            while self._queue and not self._paused:
                text = self._queue.popleft()
                self._size -= len(text)
                write(wire(text, self.form))
        except Exception:
            self.failed()
            return
        if not self._paused:
            self._blocked = False
            self._queue = _EMPTY
            self.ready = write
            self._wake()

    def failed(self) -> None:
        """A frame could not be sent: the socket has gone; the server tells the application through `receive`."""
        logger.debug("A frame could not be sent.", exc_info=True)
        self.abandon()

    async def drained(self) -> None:
        """Wait until nothing is kept back here; a client that takes nothing meanwhile is dropped."""
        while self.blocked:
            if self._watch is None:
                self._wait_for_movement()
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    @property
    def reading(self) -> asyncio.Lock:
        """The lock that is held while entries are read for this connection and written to it."""
        if self._reading is None:
            self._reading = asyncio.Lock()
        return self._reading

    def _wait_for_movement(self) -> None:
        self._moved, self._unsent_then = False, self._unsent()
        time = BLIND_STALL_TIME if self._unsent_then is None else STALL_TIME
        self._watch = asyncio.get_running_loop().call_later(time, self._judge)

    def _judge(self) -> None:
        self._watch = None
        if not self._blocked:
            return
        unsent, then = self._unsent(), self._unsent_then
        # It may have grown by a ping of the server's own.
        if self._moved or (unsent is not None and then is not None and unsent < then):
            self._wait_for_movement()
        else:
            self._give_up()

    async def close(self, code: int, *, timeout: float) -> bool:  # noqa: ASYNC109 - bounds a farewell
        """Send what was kept, for at most `timeout` seconds, then end the connection with a close code.

        Returns:
            False if the socket took no close: the connection is to be aborted.
        """
        try:
            async with asyncio.timeout(timeout):
                await self.drained()
                if self._closed:
                    return False
                self._closed = True
                self.ready = None
                await self._send({"type": "websocket.close", "code": code})
        except Exception:
            # Timed out, or whatever a server raises when the socket has gone.
            return False
        else:
            return True
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Send nothing any more, and forget what was kept."""
        self._closed = True
        self.ready = None
        self._queue.clear()
        self._size = 0
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._task is not None:
            self._task.cancel()
        self._wake()

    def break_cycles(self) -> None:
        """Drop the reference to the connection, which has ended."""
        self._overflow = _tell_nobody

    def _drive(self, message: dict[str, Any]) -> None:
        coroutine: Any = self._send(message)
        try:
            waited = coroutine.send(None)
        except StopIteration:
            return
        except Exception:
            self.failed()
            return
        self._blocked = True
        self._task = asyncio.get_running_loop().create_task(self._flush(_Resumed(coroutine, waited)))

    async def _flush(self, first: _Resumed | None = None) -> None:
        try:
            if first is not None:
                await first
                self._moved = True
            while self._queue and not self._paused:
                text = self._queue.popleft()
                self._size -= len(text)
                await self._send({"type": "websocket.send", "text": text})
                self._moved = True
        except Exception:
            self._closed = True
            self._queue.clear()
        finally:
            self._task = None
            if not self._paused or self._closed:
                self._blocked = False
                self._queue = _EMPTY
                self._wake()

    def _wake(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None
