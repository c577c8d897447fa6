"""daphne's transport of a WebSocket connection.

daphne's `send` does not wait, and Twisted's transport buffers without limit. So this module registers a producer. The
transport tells the producer when the buffer exceeds a size, and when it is empty again.

If the transport's buffer is empty, a frame that is shared by many subscribers is written to the socket directly.
If the buffer is not empty, the frame is written to the transport, so that the order is preserved. With TLS, frames are
always written to the transport.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet import tcp
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from .base import Transport, unacknowledged_bytes
from .limits import READ_SIZE


@implementer(IPushProducer)
class BufferObserver:
    """A producer that Twisted's transport calls when the transport's buffer is full, and when it has room again."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.pauseProducing = pause
        self.resumeProducing = resume
        # Twisted calls `stopProducing` if the connection is lost. After that, nothing may be written.
        self.stopProducing = pause

    def release(self) -> None:
        """Drop the callbacks, because the state of the buffer no longer matters."""
        self.pauseProducing = self.resumeProducing = self.stopProducing = _do_nothing


def _do_nothing() -> None:
    """Do nothing, in place of a dropped callback."""


class DaphneTransport(Transport):
    """The transport of one WebSocket connection of daphne.

    Args:
        send: daphne's own `send`.
        protocol: the autobahn protocol of the connection.
    """

    drainable = True
    _stopped = False

    def __init__(self, send: Any, protocol: Any) -> None:
        super().__init__(send)
        self._protocol = protocol
        transport = protocol.transport
        if isinstance(transport, tcp.Connection) and not transport.TLS and not self.lost:
            self.write = partial(_write, protocol, transport, transport.socket.send)
            # All frames of one read are parsed before other connections are served, so each read must be small.
            transport.bufferSize = READ_SIZE

    @property
    def lost(self) -> bool:
        """Whether the client has disconnected, or daphne has refused the connection."""
        return bool(self._protocol.state == WebSocketProtocol.STATE_CLOSED)

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register two callbacks for the state of the transport's buffer, see `Transport.attach`."""
        transport = self._protocol.transport
        # The HTTP channel of the handshake is still registered as a producer, but is no longer needed.
        transport.unregisterProducer()
        transport.registerProducer(BufferObserver(pause, resume), True)

    def pause_reading(self) -> None:
        """Stop reading, because daphne's queue of received frames has no limit. Also postpone daphne's next ping."""
        self._protocol.transport.pauseProducing()
        self._protocol.last_ping = time.time()
        if self._protocol.autoPingTimeoutCall is not None:
            self._protocol.autoPingTimeoutCall.cancel()
            self._protocol.autoPingTimeoutCall = self._protocol.autoPingPending = None

    def resume_reading(self) -> None:
        """Continue to read frames. Frames in daphne's queue are received first."""
        if not self.lost and not self._stopped:
            self._protocol.transport.resumeProducing()

    def stop_reading(self) -> None:
        """Stop reading, because the connection is being closed."""
        self._stopped = True
        self._protocol.transport.pauseProducing()

    def unsent(self) -> int | None:
        """Return how many bytes are in the buffers of the transport and the kernel; None if the number is unknown."""
        return unsent_bytes(self._protocol.transport)

    def abort(self) -> None:
        """Drop the connection immediately, and discard its buffer."""
        self._protocol.dropConnection(abort=True)


def unsent_bytes(transport: Any) -> int | None:
    """Return how many bytes are in the buffers of a Twisted transport and the kernel; None if the number is unknown."""
    if not isinstance(transport, tcp.Connection) or not transport.connected:
        return None
    pending = unacknowledged_bytes(transport.fileno())
    buffered = len(transport.dataBuffer) - transport.offset + sum(map(len, transport._tempDataBuffer))
    return None if pending is None else buffered + pending


def _write(protocol: Any, transport: Any, send: Callable[[bytes], int], frame: bytes) -> None:
    if protocol.state == WebSocketProtocol.STATE_OPEN:
        write_directly(transport, send, frame)


def write_directly(transport: Any, send: Callable[[bytes], int], frame: bytes) -> None:
    """Write to the socket of a Twisted transport.

    If the transport's buffer is not empty, write to the transport, so that the order of the bytes is preserved.

    Args:
        transport: a transport without TLS.
        send: the method `send` of the transport's socket.
        frame: the bytes to write.
    """
    # Both buffers are internals of Twisted. Tests in tests/unit/test_servers.py fail if Twisted changes them.
    if transport._tempDataBuffer or transport.dataBuffer:
        transport.write(frame)
        return
    try:
        sent = send(frame)
    except BlockingIOError:
        sent = 0
    except OSError:
        return  # Twisted finds the error itself, and calls connectionLost
    if sent < len(frame):
        transport.write(frame[sent:])


def transport_for(send: Any) -> DaphneTransport | None:
    """Return the transport for a `send` of daphne; None if the `send` does not belong to daphne."""
    if isinstance(send, partial) and len(send.args) == 1:
        server = getattr(send.func, "__self__", None)
        if any(cls.__module__ == "daphne.server" for cls in type(server).__mro__):
            return DaphneTransport(send, send.args[0])
    return None
