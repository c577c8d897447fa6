"""uvicorn's HTTP protocol, which begins a few connections in each turn of the event loop, however many come at once.

Else the handshakes of thousands of clients that come back are parsed in one turn, and all their applications begin in
the next: meanwhile, nobody who is connected gets anything. `manage.py cable_serve` uses it. Needs uvicorn.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from reliable_cable.concurrency.pacing import PER_ITERATION, Pacer


class PacedHTTPProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]  # one of two classes
    """Whichever of its HTTP protocols uvicorn would choose; the first data of a connection wait for their turn."""

    #: Of the one event loop of a server's process.
    pacer: ClassVar[Pacer] = Pacer(PER_ITERATION)
    _begun = False

    def data_received(self, data: bytes) -> None:
        """Take data; the first of them when their turn has come."""
        if self._begun:
            super().data_received(data)
            return
        self._begun = True
        # Not before: uvloop begins to read after `connection_made`, whatever that does.
        self.transport.pause_reading()
        self.pacer.run(partial(self._begin, data))

    def _begin(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.transport.resume_reading()
        try:
            super().data_received(data)
        except Exception:
            # As a transport does whose protocol fails.
            self.transport.abort()
            raise

    def handle_websocket_upgrade(self, *args: Any) -> None:
        """Hand the connection over and go: httptools' parser, which has our methods, would keep this alive."""
        super().handle_websocket_upgrade(*args)
        self.parser = None
