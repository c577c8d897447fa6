"""daphne: `send` returns at once and buffers without limit in Twisted's transport, which tells when that is full."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from .base import Connection


@implementer(IPushProducer)
class _Valve:
    """What Twisted's transport tells that its buffer is full, and that it has drained."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.pauseProducing = pause
        self.resumeProducing = resume

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        """The connection was lost: ASGI tells that too."""


class DaphneConnection(Connection):
    """A WebSocket connection of daphne.

    Args:
        protocol: the autobahn protocol behind `send`.
    """

    drainable = True

    def __init__(self, protocol: Any) -> None:
        super().__init__(None)
        self._protocol = protocol

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register for the state of the transport's buffer."""
        transport = self._protocol.transport
        # The HTTP channel of the handshake is still registered; its part is over.
        transport.unregisterProducer()
        transport.registerProducer(_Valve(pause, resume), True)

    def abort(self) -> None:
        """Drop the connection at once."""
        self._protocol.dropConnection(abort=True)


def recognise(send: Any) -> DaphneConnection | None:
    """Return the connection behind a `send` of daphne's, or None."""
    if isinstance(send, partial) and len(send.args) == 1:
        server = getattr(send.func, "__self__", None)
        if any(cls.__module__ == "daphne.server" for cls in type(server).__mro__):
            return DaphneConnection(send.args[0])
    return None
