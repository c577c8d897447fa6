"""uvicorn's transport of a WebSocket connection. It works with all of uvicorn's own WebSocket protocols.

uvicorn's `send` waits while the transport's buffer is full. So this transport need not report the state of the buffer.
This module does not import uvicorn.
"""

from functools import lru_cache
from typing import Any

from .base import Transport, unacknowledged_bytes
from .limits import READ_SIZE


class UvicornTransport(Transport):
    """The transport of one WebSocket connection of uvicorn.

    Args:
        protocol: the asyncio protocol of the connection. Its method `send` is the ASGI `send`.
    """

    drainable = True

    def __init__(self, protocol: Any) -> None:
        super().__init__(protocol.send)
        self._protocol = protocol
        self.grace = protocol.config.timeout_graceful_shutdown or 0.0
        # uvicorn parses all frames of one read before other connections are served, so each read must be small. The
        # transports of uvloop have no attribute `max_size`.
        if hasattr(protocol.transport, "max_size"):
            protocol.transport.max_size = READ_SIZE

    @property
    def lost(self) -> bool:
        """Whether the client has disconnected, or uvicorn has refused the connection."""
        return bool(self._protocol.transport.is_closing())

    def abort(self) -> None:
        """Drop the connection immediately, and discard its buffer."""
        self._protocol.transport.abort()

    def pause_reading(self) -> None:
        """Restart the time limit for the client's answer to uvicorn's ping.

        Nothing else is needed, because uvicorn stops reading while `receive` is not awaited.
        """
        timer = getattr(self._protocol, "pong_timer", None)
        if timer is not None:
            timer.cancel()
            protocol = self._protocol
            protocol.pong_timer = protocol.loop.call_later(protocol.ping_timeout, protocol.keepalive_timeout)

    def stop_reading(self) -> None:
        """Stop reading, because the connection is being closed."""
        self._protocol.transport.pause_reading()

    def unsent(self) -> int | None:
        """Return how many bytes are in the buffers of the transport and the kernel; None if the number is unknown."""
        return unsent_bytes(self._protocol.transport)


def unsent_bytes(transport: Any) -> int | None:
    """Return how many bytes are in the buffers of an asyncio transport and of the kernel; None if that is unknown."""
    socket = transport.get_extra_info("socket")
    pending = None if socket is None or transport.is_closing() else unacknowledged_bytes(socket.fileno())
    return None if pending is None else transport.get_write_buffer_size() + pending


def transport_for(send: Any) -> UvicornTransport | None:
    """Return the transport for a `send` of uvicorn; None if the `send` does not belong to uvicorn."""
    protocol = getattr(send, "__self__", None)
    if protocol is None or not _is_protocol(protocol.__class__) or not hasattr(protocol, "transport"):
        return None
    return UvicornTransport(protocol)


@lru_cache(maxsize=128)
def _is_protocol(cls: type) -> bool:
    """Return whether a class is a WebSocket protocol of uvicorn. A server has only a few classes, so this is cached."""
    return any(base.__module__.startswith("uvicorn.protocols.websockets.") for base in cls.__mro__)
