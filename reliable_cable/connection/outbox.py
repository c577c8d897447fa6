"""The outbox of a connection: it writes frames at once while the socket accepts them, and queues them otherwise.

See Protocol: Slow clients.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from types import coroutine
from typing import Any

from reliable_cable.logs import logger
from reliable_cable.protocol import messages
from reliable_cable.protocol.frames import Frame

from .account import Account

Send = Callable[[dict[str, Any]], Awaitable[None]]

#: How long, in seconds, a full socket may accept nothing before its client counts as too slow.
STALL_TIME = 10.0
#: Replaces `STALL_TIME` if the server does not know how much the kernel has buffered. While the client reads that data,
#: which may be several megabytes, the socket may accept nothing.
BLIND_STALL_TIME = 60.0

#: The queue of every outbox that has nothing queued. It always stays empty.
_EMPTY: deque[str] = deque(maxlen=0)


def wire(text: str, form: type[Frame] = Frame) -> bytes:
    """Return a message as the bytes of a WebSocket frame.

    Args:
        text: the text of the message. If it is a `Frame` of a class that the client can read, it is encoded only once,
            for all clients.
        form: the class of frames that the client can read, in addition to `Frame` itself.
    """
    if isinstance(text, Frame) and type(text) in (Frame, form):
        return text.wire
    return form(text).wire


def _do_nothing() -> None:
    """Do nothing. This function replaces `overflow` after the connection has ended."""


def _unknown() -> None:
    """Return None, which means that the number of unsent bytes is unknown."""


@coroutine
def _resume(started: Generator[Any, Any, None], waited: Any) -> Generator[Any, Any, None]:
    """Run the rest of a coroutine whose first step has run outside a task.

    Args:
        started: the coroutine after its first step.
        waited: the object that the first step has yielded.
    """
    while True:
        try:
            value = yield waited
        except BaseException as error:  # the coroutine handles the error
            step = partial(started.throw, error)
        else:
            step = partial(started.send, value)
        try:
            waited = step()
        except StopIteration:
            return


@dataclass(slots=True, eq=False, repr=False)
class Outbox:
    """Sends frames to one client, in order.

    Fan-out never waits for a socket. `push` starts the server's `send`. If `send` has to wait, a task of this
    connection finishes it, and further frames are queued. Frames are also queued while the server's buffer is full
    (`pause`).

    The connection's account limits the size of the queue. Messages that can be read from the store later may use half
    of the limit. Messages that subscribers hold until they are live may use a quarter of it. The remaining bytes are
    reserved for frames that cannot be read again.

    Args:
        send: the ASGI `send`.
        account: counts the bytes of the queued frames, among others. If the total exceeds its limit, `overflow` is
            called once.
        overflow: a function that is called when the client is too slow: too many bytes are queued, or the socket
            accepted nothing for `STALL_TIME` or `BLIND_STALL_TIME` while `drained` was waiting.
        write: a function that writes the bytes of a frame without waiting, or None if the server has none (see
            `servers.base.Transport`).
        form: the class of frames that the client can read.
        unsent: a function that returns how many written bytes the client has not acknowledged, or None if unknown.
    """

    send: Send
    _: KW_ONLY
    account: Account
    overflow: Callable[[], None]
    write: Callable[[bytes], None] | None = None
    form: type[Frame] = Frame
    unsent: Callable[[], int | None] = _unknown
    #: A function that writes the bytes of a frame at once. While it is None, `push` must be used instead.
    ready: Callable[[bytes], None] | None = field(init=False)
    #: The size, in bytes, of the messages and entries that subscribers of this connection hold until they are live.
    held: int = 0
    #: Whether sending has ended.
    closed: bool = False
    #: Whether the socket accepts nothing now, so that frames are queued.
    blocked: bool = False
    _queue: deque[str] = field(default_factory=lambda: _EMPTY)
    _size: int = 0
    _paused: bool = False
    #: The timer of the next check of a full socket.
    _watch: asyncio.TimerHandle | None = None
    #: Whether the socket has accepted a frame since the last check.
    _moved: bool = False
    #: The number of unsent bytes at the last check, or None if it was unknown.
    _unsent_then: int | None = None
    _reading: asyncio.Lock | None = None
    _task: asyncio.Task[None] | None = None
    _drained: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        self.ready = self.write

    def push(self, text: str, *, droppable: bool = False) -> bool:
        """Send a frame, or queue it while the socket accepts none.

        Args:
            text: the text of the frame.
            droppable: whether the frame may be dropped if the account is half full. True for whispers, and for messages
                that can be read from the store later.

        Returns:
            False if the frame was dropped.
        """
        if self.ready is not None:
            try:
                self.ready(wire(text, self.form))
            except Exception:
                self.failed()
            return True
        if self.closed:
            return True
        if not self.blocked:
            self._drive({"type": "websocket.send", "text": text})
            return True
        account = self.account
        if droppable and account.used + len(text) > account.half:
            return False
        if self._queue is _EMPTY:
            self._queue = deque()
        self._queue.append(text)
        self._count(len(text))
        if account.used > account.limit:
            self._give_up()
        return True

    def _pop(self) -> str:
        text = self._queue.popleft()
        self._count(-len(text))
        return text

    def _count(self, size: int) -> None:
        self._size += size
        self.account.used += size

    def can_hold(self, size: int) -> bool:
        """Return whether subscribers may hold `size` more bytes of messages."""
        account = self.account
        return self.held + size <= account.limit // 4 and account.used + size <= account.limit

    def can_hold_page(self, size: int) -> bool:
        """Return whether `size` more bytes of entries may be held. The limit is low: entries can be read again."""
        account = self.account
        return self.held + size <= account.limit // 8 and account.used + size <= account.half

    def hold(self, size: int) -> None:
        """Count bytes of held messages, or of pages that wait to be sent. A negative size reduces the count."""
        self.held += size
        self.account.used += size

    def _give_up(self) -> None:
        self.abandon()
        try:
            self.overflow()
        except Exception:
            # The fan-out must continue with the other subscribers.
            logger.exception("A slow client could not be disconnected.")

    def push_all(self, frames: Sequence[str]) -> None:
        """Send several frames, in one write if the server offers `write`."""
        if self.ready is None or len(frames) < 2:
            for frame in frames:
                self.push(frame)
            return
        try:
            self.ready(b"".join([wire(frame, self.form) for frame in frames]))
        except Exception:
            self.failed()

    def send_positions(self) -> None:
        """Do nothing. Only readers of server-sent events need their positions, because they have no session."""

    def pause(self) -> None:
        """Queue further frames instead of sending them, because the server's buffer is full."""
        self._paused = self.blocked = True
        self.ready = None

    def resume(self) -> None:
        """Send the queued frames, because the server's buffer has room."""
        self._paused = False
        self._moved = True
        if self.closed or not self.blocked:
            return
        if self.write is not None:
            self._write_queued(self.write)
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._flush())

    def _write_queued(self, write: Callable[[bytes], None]) -> None:
        try:
            while self._queue and not self._paused:
                write(wire(self._pop(), self.form))
        except Exception:
            self.failed()
            return
        if not self._paused:
            self.blocked = False
            self._queue = _EMPTY
            self.ready = write
            self._wake()

    def failed(self) -> None:
        """Stop sending, because the socket is closed. The consumer learns this from the ASGI `receive`."""
        logger.debug("A frame could not be sent.", exc_info=True)
        self.abandon()

    async def transmit(self, identifier: str, transmissions: Iterable[str]) -> None:
        """Send the transmissions of a handler. After each of them, wait until the socket accepts more.

        So even a client that reads slowly gets all transmissions.

        Args:
            identifier: the identifier of the subscription.
            transmissions: the messages as JSON text.
        """
        for data in transmissions:
            self.push(messages.transmission(identifier, data))
            if self.blocked:
                await self.drained()

    async def drained(self) -> None:
        """Wait until no frame is queued. If the socket accepts nothing for too long, the client is disconnected."""
        while self.blocked and not self.closed:
            if self._watch is None:
                self._watch_socket()
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    @property
    def reading(self) -> asyncio.Lock:
        """The lock that is held while entries are read from the store and written to this connection."""
        if self._reading is None:
            self._reading = asyncio.Lock()
        return self._reading

    def _watch_socket(self) -> None:
        self._moved, self._unsent_then = False, self.unsent()
        time = BLIND_STALL_TIME if self._unsent_then is None else STALL_TIME
        self._watch = asyncio.get_running_loop().call_later(time, self._check_socket)

    def _check_socket(self) -> None:
        self._watch = None
        if not self.blocked:
            return
        unsent, then = self.unsent(), self._unsent_then
        # Only a decrease shows that the client is reading. Pings of the server itself can increase the number.
        if self._moved or (unsent is not None and then is not None and unsent < then):
            self._watch_socket()
        else:
            self._give_up()

    async def close(self, code: int, *, timeout: float) -> bool:  # noqa: ASYNC109 - bounds the whole call
        """Send the queued frames, then close the connection.

        Args:
            code: the WebSocket close code.
            timeout: how long, in seconds, sending and closing may take together.

        Returns:
            False if the close frame could not be sent in time. The connection then has to be aborted.
        """
        try:
            async with asyncio.timeout(timeout):
                await self.drained()
                if self.closed:
                    return False
                self.closed = True
                self.ready = None
                await self.send({"type": "websocket.close", "code": code})
        except Exception:
            # The timeout has passed, or the server raised an error because the socket is closed.
            return False
        else:
            return True
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Stop sending, and drop the queued frames."""
        self.closed = True
        self.ready = None
        self._clear()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._task is not None:
            self._task.cancel()
        self._wake()

    def _clear(self) -> None:
        self._queue.clear()
        self._count(-self._size)

    def break_cycles(self) -> None:
        """Drop the reference to the connection, which has ended."""
        self.overflow = _do_nothing

    def _drive(self, message: dict[str, Any]) -> None:
        started: Any = self.send(message)
        try:
            waited = started.send(None)
        except StopIteration:
            return
        except Exception:
            self.failed()
            return
        self.blocked = True
        self._task = asyncio.get_running_loop().create_task(self._flush(_resume(started, waited)))

    async def _flush(self, first: Awaitable[None] | None = None) -> None:
        try:
            if first is not None:
                await first
                self._moved = True
            while self._queue and not self._paused:
                await self.send({"type": "websocket.send", "text": self._pop()})
                self._moved = True
        except Exception:
            self.closed = True
            self._clear()
        finally:
            self._task = None
            if not self._paused or self.closed:
                self.blocked = False
                self._queue = _EMPTY
                self._wake()

    def _wake(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None
