"""A subclass of uvicorn's HTTP protocol that starts only a few connections in each iteration of the event loop.

With uvicorn's own protocol, the handshakes of thousands of reconnecting clients are parsed in one iteration, and all
their applications start in the next one. During this time, clients that are already connected receive nothing.

The protocol also limits the size of the headers of a request, and the time to send them. `manage.py cable_serve` uses
this protocol. This module needs uvicorn and httptools.
"""

import asyncio
from enum import Enum, auto
from functools import partial
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from reliable_cable.concurrency.pacing import PER_ITERATION, Pacer

from .limits import HEADERS_TIMEOUT, MAX_HEADERS_SIZE

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Reading(Enum):
    """The part of a request that a connection reads next."""

    #: The first line of the next request.
    REQUEST = auto()
    #: The rest of the first line or of the headers.
    HEADERS = auto()
    #: The body of a request, or frames of a WebSocket.
    BODY = auto()


class PacedHTTPProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which processes the first data of a connection when the pacer admits it."""

    #: The pacer of all connections of the process, because a server has one event loop.
    pacer: ClassVar[Pacer] = Pacer(PER_ITERATION)
    _begun = False
    _reading = _Reading.REQUEST
    #: The number of received bytes of incomplete headers, without the data of the request's first read.
    _headers_size = 0
    #: The timer that closes the connection if the headers take too long.
    _headers_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Limit the time until the headers of the first request have arrived."""
        super().connection_made(transport)
        self._limit_time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time limit for headers."""
        self._end_limits()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process received data. The first data of a connection waits until the pacer admits the connection."""
        if self._begun:
            self._process(data)
            return
        self._begun = True
        # The time limit is for slow clients, so it must not run while the connection is waiting for the pacer.
        self._end_limits()
        # Reading cannot be paused in `connection_made`, because uvloop starts to read after that method in any case.
        self.transport.pause_reading()
        self.pacer.run(partial(self._begin, data))

    def _begin(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.transport.resume_reading()
        try:
            self._process(data)
        except Exception:
            # asyncio itself drops the connection in the same way if a protocol raises an error.
            self.transport.abort()
            raise

    def _process(self, data: bytes) -> None:
        super().data_received(data)
        if self._reading is _Reading.BODY or self.transport.is_closing():
            return
        if self._reading is _Reading.REQUEST and self._is_responding():
            return
        if self._headers_timer is None:
            self._limit_time()
            return
        self._headers_size += len(data)
        if self._headers_size > MAX_HEADERS_SIZE:
            self.logger.info("A request was refused (431), because its headers exceed %d bytes.", MAX_HEADERS_SIZE)
            self._end_limits()
            if not self._is_responding():
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def _is_responding(self) -> bool:
        """Return whether the response to an earlier request of the connection is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _limit_time(self) -> None:
        self._headers_size = 0
        self._headers_timer = self.loop.call_later(HEADERS_TIMEOUT, self._close_if_slow)

    def _end_limits(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _close_if_slow(self) -> None:
        if self._is_responding():
            self._limit_time()
        else:
            self._headers_timer = None
            self.transport.close()

    # -- called by the parser -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Record that the headers of a request are being received."""
        self._reading = _Reading.HEADERS
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Cancel the limits for headers, because all headers have been received."""
        self._reading = _Reading.BODY
        self._end_limits()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Record that the request is complete, so that the next data belong to another request."""
        self._reading = _Reading.REQUEST
        super().on_message_complete()

    def handle_websocket_upgrade(self, *args: Any) -> None:
        """Pass the connection to the WebSocket protocol, and drop the parser.

        The parser of httptools refers to methods of this object. Without the parser, there is no reference cycle, and
        the object is freed without a garbage collection.
        """
        self._reading = _Reading.BODY
        super().handle_websocket_upgrade(*args)
        self.parser = None  # type: ignore[assignment]
