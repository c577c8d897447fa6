"""uvicorn's HTTP protocol, changed to start only a few connections in each iteration of the event loop.

Without this, the handshakes of thousands of clients that reconnect would be parsed in one iteration, and all of their
applications would start in the next one. Connected clients would receive nothing meanwhile. `manage.py cable_serve`
uses this protocol. This module needs uvicorn.
"""

from functools import partial
from typing import Any, ClassVar

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from reliable_cable.concurrency.pacing import PER_ITERATION, Pacer


class PacedHTTPProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]  # httptools or h11
    """uvicorn's default HTTP protocol, which processes the first data of a connection when the pacer admits it."""

    #: Shared by all connections of the process, because a server has one event loop.
    pacer: ClassVar[Pacer] = Pacer(PER_ITERATION)
    _begun = False

    def data_received(self, data: bytes) -> None:
        """Process received data. The first data of a connection is held until the pacer admits the connection."""
        if self._begun:
            super().data_received(data)
            return
        self._begun = True
        # Pausing in `connection_made` would be too early, because uvloop starts reading after it in any case.
        self.transport.pause_reading()
        self.pacer.run(partial(self._begin, data))

    def _begin(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.transport.resume_reading()
        try:
            super().data_received(data)
        except Exception:
            # asyncio does the same when a protocol raises an error.
            self.transport.abort()
            raise

    def handle_websocket_upgrade(self, *args: Any) -> None:
        """Hand the connection over to the WebSocket protocol.

        The parser of httptools refers to methods of this object. Dropping the parser breaks this reference cycle, so
        that the object is freed without a garbage collection.
        """
        super().handle_websocket_upgrade(*args)
        self.parser = None
