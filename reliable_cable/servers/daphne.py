"""daphne: `send` returns at once and buffers without limit in Twisted's transport, which tells when that is full.

A frame that was made once for all subscribers goes straight to the socket while the transport has nothing of its own to
write, and else through the transport, so that the order stays. With TLS there is no such way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet import tcp
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from .base import Transport, in_kernel


@implementer(IPushProducer)
class _Valve:
    """What Twisted's transport tells that its buffer is full, and that it has drained."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.pauseProducing = pause
        self.resumeProducing = resume
        #: The connection was lost: nothing is to be written any more. ASGI tells it, too.
        self.stopProducing = pause


class DaphneTransport(Transport):
    """A WebSocket connection of daphne.

    Args:
        send: the `send` that daphne made.
        protocol: the autobahn protocol behind it.
    """

    drainable = True

    def __init__(self, send: Any, protocol: Any) -> None:
        super().__init__(send)
        self._protocol = protocol
        transport = protocol.transport
        if isinstance(transport, tcp.Connection) and not transport.TLS and not self.lost:
            self.write = partial(_write, protocol, transport, transport.socket.send)

    @property
    def lost(self) -> bool:
        """Whether the client has disconnected, or daphne has refused it."""
        return bool(self._protocol.state == WebSocketProtocol.STATE_CLOSED)

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register for the state of the transport's buffer."""
        transport = self._protocol.transport
        # The HTTP channel of the handshake is still registered; its part is over.
        transport.unregisterProducer()
        transport.registerProducer(_Valve(pause, resume), True)

    def unsent(self) -> int | None:
        """Return how many bytes the transport and the kernel have."""
        transport = self._protocol.transport
        if not isinstance(transport, tcp.Connection) or not transport.connected:
            return None
        kept = in_kernel(transport.fileno())
        waiting = len(transport.dataBuffer) - transport.offset + sum(map(len, transport._tempDataBuffer))
        return None if kept is None else waiting + kept

    def abort(self) -> None:
        """Drop the connection at once."""
        self._protocol.dropConnection(abort=True)


def _write(protocol: Any, transport: Any, send: Callable[[bytes], int], frame: bytes) -> None:
    if protocol.state != WebSocketProtocol.STATE_OPEN:
        return
    # Both buffers are private, and pinned by tests/unit/test_servers.py.
    if transport._tempDataBuffer or transport.dataBuffer:
        transport.write(frame)
        return
    try:
        sent = send(frame)
    except BlockingIOError:
        sent = 0
    except OSError:
        return  # Twisted notices, too, and says so
    if sent < len(frame):
        transport.write(frame[sent:])


def transport_for(send: Any) -> DaphneTransport | None:
    """Return the connection behind a `send` of daphne's, or None."""
    if isinstance(send, partial) and len(send.args) == 1:
        server = getattr(send.func, "__self__", None)
        if any(cls.__module__ == "daphne.server" for cls in type(server).__mro__):
            return DaphneTransport(send, send.args[0])
    return None
