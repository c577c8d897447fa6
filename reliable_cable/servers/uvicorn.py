"""uvicorn: `send` waits while the transport's buffer is full; aborting needs the transport."""

from __future__ import annotations

from typing import Any

from .base import Connection


class UvicornConnection(Connection):
    """A WebSocket connection of uvicorn.

    Args:
        protocol: the asyncio protocol whose `send` the application was given.
    """

    drainable = True

    def __init__(self, protocol: Any) -> None:
        super().__init__(None)
        self._protocol = protocol

    def abort(self) -> None:
        """Drop the connection at once."""
        self._protocol.transport.abort()


def recognise(send: Any) -> UvicornConnection | None:
    """Return the connection behind a `send` of uvicorn's, or None."""
    protocol = getattr(send, "__self__", None)
    ours = any(cls.__module__.startswith("uvicorn.protocols.websockets.") for cls in type(protocol).__mro__)
    return UvicornConnection(protocol) if ours and hasattr(protocol, "transport") else None
