"""The adapter that posts messages to the HTTP endpoint of anycable-go."""

import os
import selectors
import ssl
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from reliable_cable.concurrency.threads import run_publish
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, described

from .base import Adapter, join, shared_key, uncertain

#: How long, in seconds, opening a connection may take.
CONNECT_TIMEOUT: Final = 2.0
#: How long, in seconds, the server may take to read a request or to respond.
RESPONSE_TIMEOUT: Final = 5.0
#: The delays, in seconds, before further attempts to send a request that the server has certainly not handled.
RETRY_DELAYS: Final = (0.1, 0.4)
#: The maximum number of idle connections that are kept open.
MAX_IDLE: Final = 16

#: Statuses after which the request may have been handled. Most of them come from proxies.
_UNCERTAIN_STATUSES: Final = (
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.GATEWAY_TIMEOUT,
)
#: Statuses after which the request was certainly not handled, and can be repeated.
_BUSY_STATUSES: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class _NotHandled(Exception):
    """Raised if a request was certainly not handled, so that it can be repeated."""


class HttpAdapter(Adapter):
    """Posts all messages of a call in one request (`--broadcast_adapter=http`). Connections are kept open.

    A request is repeated only if the server has certainly not handled it.
    """

    def __init__(self, settings: CableSettings) -> None:
        super().__init__(settings)
        self._address = urlsplit(settings.http_broadcast_url)
        self._target = (self._address.path or "/") + (f"?{self._address.query}" if self._address.query else "")
        key = shared_key(settings, "broadcast-cable", settings.broadcast_key)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._tls = ssl.create_default_context() if self._address.scheme == "https" else None
        self._pid = os.getpid()
        #: The idle connections that are kept open. The last one was used most recently.
        self._idle: deque[HTTPConnection] = deque(maxlen=MAX_IDLE)

    @property
    def place(self) -> str:
        """The URL of the endpoint, without a user and a password."""
        address = self._address
        port = f":{address.port}" if address.port else ""
        return f"anycable-go at {address.scheme}://{address.hostname}{port}{address.path}"

    def publish(self, messages: Sequence[str]) -> None:
        """Post all messages in one request."""
        (text,) = join(messages)
        body = text.encode()
        for delay in (*RETRY_DELAYS, None):
            try:
                self._post(body)
            except _NotHandled as error:
                if delay is None:
                    raise BroadcastError(f"Nothing was broadcast: {error}") from error
                time.sleep(delay)
            else:
                return

    async def apublish(self, messages: Sequence[str]) -> None:
        """Async version of `publish`."""
        await run_publish(partial(self.publish, messages))

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _post(self, body: bytes) -> None:
        connection = self._idle_connection() or self._new_connection()
        try:
            connection.request("POST", self._target, body, self._headers)
            response = connection.getresponse()
            response.read()
        except (OSError, HTTPException) as error:
            connection.close()
            raise uncertain(f"{self.place} did not respond: {described(error)}.") from error
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        self._check(response)

    def _check(self, response: HTTPResponse) -> None:
        status = response.status
        if status == HTTPStatus.UNAUTHORIZED:
            raise BroadcastError(
                f"Nothing was broadcast: {self.place} refused the key. Set RELIABLE_CABLE['SECRET'] to the secret of "
                "anycable-go (--secret), or RELIABLE_CABLE['BROADCAST_KEY'] to its key (--broadcast_key)."
            )
        if status in _BUSY_STATUSES:
            raise _NotHandled(f"{self.place} responded with the status {status}.")
        if status in _UNCERTAIN_STATUSES:
            raise uncertain(f"{self.place} responded with the status {status}.")
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise BroadcastError(
                f"Nothing was broadcast: {self.place} responded with the status {status}. Check the path in "
                "RELIABLE_CABLE['HTTP_BROADCAST_URL']."
            )

    def _idle_connection(self) -> HTTPConnection | None:
        """Return an idle connection that is still open; None if there is none."""
        if self._pid != os.getpid():
            # The parent process uses the same sockets. `close` closes only the copies that this process has.
            self._pid = os.getpid()
            self.close()
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread has taken it
                break
            if not _is_closed_by_server(connection):
                return connection
            connection.close()
        return None

    def _new_connection(self) -> HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        connection = (
            HTTPConnection(host, port, timeout=CONNECT_TIMEOUT)
            if self._tls is None
            else HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT, context=self._tls)
        )
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise _NotHandled(f"{self.place} cannot be reached: {described(error)}.") from error
        connection.sock.settimeout(RESPONSE_TIMEOUT)
        return connection

    def _keep(self, connection: HTTPConnection) -> None:
        """Keep a connection for another request, unless the server closes it, or `MAX_IDLE` are already kept."""
        if connection.sock is None or len(self._idle) >= MAX_IDLE:
            connection.close()
        else:
            self._idle.append(connection)


def _is_closed_by_server(connection: HTTPConnection) -> bool:
    """Return whether the server has closed an idle connection, or has sent data that belong to no request."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return bool(selector.select(0))
