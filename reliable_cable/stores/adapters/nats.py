"""The adapter that publishes messages to anycable-go through NATS."""

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from inspect import signature
from typing import Any, Final
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, described

from .base import Adapter, join, uncertain

#: How long, in seconds, opening a connection to one server may take.
CONNECT_TIMEOUT: Final = 2.0
#: How long, in seconds, a server may take to confirm that it has received the messages.
FLUSH_TIMEOUT: Final = 5.0
#: How long, in seconds, a call may wait for a connection, however many servers are tried. If twice the option
#: `connect_timeout` of nats-py is longer, that is the limit.
OPEN_TIMEOUT: Final = 5.0
#: How long, in seconds, `close` waits for the end of the thread.
CLOSE_TIMEOUT: Final = 2.0

#: The parameters of nats-py's `connect` that `NATS_OPTIONS` must not contain.
_OWN_OPTIONS: Final = frozenset(
    {
        *("self", "servers", "allow_reconnect", "max_reconnect_attempts", "reconnect_time_wait", "pending_size"),
        *("error_cb", "disconnected_cb", "closed_cb", "reconnected_cb"),
    }
)


class NatsAdapter(Adapter):
    """Publishes to a subject of NATS (`--broadcast_adapter=nats`). All servers of anycable-go receive each message.

    nats-py needs an event loop. All threads and event loops of a process share one connection, which is used by an
    event loop in a thread of its own. The thread starts with the first message. A forked process opens another
    connection. All calls that are waiting for the connection share one attempt to open it.
    """

    def __init__(self, settings: CableSettings) -> None:
        super().__init__(settings)
        nats = _import_nats()
        known = signature(nats.NATS.connect).parameters.keys() - _OWN_OPTIONS
        for option in settings.nats_options:
            if option not in known:
                raise ImproperlyConfigured(
                    f"RELIABLE_CABLE['NATS_OPTIONS'] has the key {option!r}; allowed: {', '.join(sorted(known))}."
                )
        self._urls = [url.strip() for url in settings.nats_url.split(",")]
        #: The connection of each process, by its process id. A forked process inherits those of its parents.
        self._connections: dict[int, _Connection] = {}

    @property
    def place(self) -> str:
        """The addresses of the servers, and the subject."""
        servers = ", ".join(urlsplit(url).netloc.rpartition("@")[2] for url in self._urls)
        return f"NATS at {servers}, subject {self.settings.broadcast_channel!r}"

    def publish(self, messages: Sequence[str]) -> None:
        """Publish messages, and wait until a server has received them."""
        self._submit(messages).result()

    async def apublish(self, messages: Sequence[str]) -> None:
        """Async version of `publish`. If it is cancelled, the messages are still published."""
        await asyncio.shield(asyncio.wrap_future(self._submit(messages)))

    def close(self) -> None:
        """Close the connection of this process, and end its thread."""
        connection = self._connections.pop(os.getpid(), None)
        if connection is not None:
            connection.stop()
            if connection.thread.is_alive():
                connection.thread.join(CLOSE_TIMEOUT)

    def _submit(self, messages: Sequence[str]) -> Future[None]:
        pid = os.getpid()
        connection = self._connections.get(pid)
        if connection is None:
            # There is no lock here: a process that is forked while a thread holds the lock could never take it.
            new = _Connection(self._urls, self.settings.nats_options, self.place)
            connection = self._connections.setdefault(pid, new)
            if connection is new:
                weakref.finalize(self, _abandon, connection).atexit = False
        return connection.submit(connection.publish(self.settings.broadcast_channel, messages))


class _Connection:
    """A connection to one of several servers, and the thread with the event loop that uses it.

    Args:
        urls: the URLs of the servers. They are tried in this order, beginning with the one that was used last.
        options: options of nats-py.
        place: where messages are sent, for error messages.
    """

    def __init__(self, urls: Sequence[str], options: Mapping[str, Any], place: str) -> None:
        self.pid = os.getpid()
        self._urls = list(urls)
        self._options = {"connect_timeout": CONNECT_TIMEOUT, **options}
        self._place = place
        self._client: Any = None
        #: How many messages the server has refused, because the user has no permission.
        self._refused = 0
        #: The last error that nats-py has reported.
        self._last_error: Exception | None = None
        #: The lock of the attempt to connect. Waiting calls take it in the order in which they were made.
        self._opening = asyncio.Lock()
        #: The error of the last attempt to connect that failed.
        self._failure: BroadcastError | None = None
        #: The running calls of `publish`, and the clients that are being closed.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = threading.Lock()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.thread = threading.Thread(target=self._run, name="cable-nats", daemon=True)

    def submit(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        """Run a coroutine in the thread, which is started first if necessary.

        Raises:
            BroadcastError: `stop` was called, or the thread cannot be started.
        """
        with self._starting:
            if self._stopped:
                work.close()
                raise BroadcastError(f"Nothing was broadcast: the connection to {self._place} was closed.")
            if self._loop is None:
                self._loop = loop = asyncio.SelectorEventLoop()
                try:
                    self.thread.start()
                except RuntimeError as error:
                    self._loop = None
                    loop.close()
                    work.close()
                    raise BroadcastError(f"Nothing was broadcast: {error}.") from error
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Close the connection and end the thread after the running calls, without waiting for it.

        Later calls of this method do nothing.
        """
        with self._starting:
            if not self._stopped and self._loop is not None:
                asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
            self._stopped = True

    async def publish(self, subject: str, messages: Sequence[str]) -> None:
        """Publish messages, and wait until the server has received them.

        Raises:
            BroadcastError: see `Adapter.publish`.
        """
        self._keep(asyncio.current_task())
        client = await self._connected()
        texts = list(join(messages, client.max_payload))
        refused = self._refused
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                for text in texts:
                    await client.publish(subject, text.encode())
                await client.flush(FLUSH_TIMEOUT)
        except Exception as error:
            # Otherwise, a late response could be taken for the response to a later flush.
            self._discard(client)
            raise uncertain(f"{self._place} did not confirm it: {described(error)}.") from error
        # The server reports a refusal before it responds to the flush.
        if self._refused > refused:
            raise BroadcastError(f"Nothing was broadcast: {self._place} does not allow this user to publish.")

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None  # noqa: S101 - for the type checker
        try:
            loop.run_forever()
        finally:
            loop.close()

    async def _stop(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._client is not None:
            await _close(self._client)
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().stop)

    async def _connected(self) -> Any:
        """Return the client, after connecting to a server if necessary.

        If an attempt to connect fails, each call that was waiting for it fails too. The next call makes another one.

        Raises:
            BroadcastError: no server can be reached.
        """
        known = self._failure
        deadline = asyncio.get_running_loop().time() + max(OPEN_TIMEOUT, 2 * self._options["connect_timeout"])
        async with self._opening:
            if self._client is not None and self._client.is_connected:
                return self._client
            if self._failure is not known:  # an attempt has failed during this call
                raise BroadcastError(str(self._failure)) from self._failure
            try:
                self._client = await self._connect(deadline)
            except BroadcastError as error:
                self._failure = error
                raise
            return self._client

    async def _connect(self, deadline: float) -> Any:
        """Try the servers in turn, until a time of the event loop. Return the new client.

        Raises:
            BroadcastError: no server can be reached.
        """
        error: Exception | None = None
        for url in list(self._urls):
            try:
                return await self._open(url, deadline)
            except Exception as caught:
                error = caught
                self._urls.append(self._urls.pop(0))  # a server that failed goes to the end of the list
            if asyncio.get_running_loop().time() >= deadline:
                break
        assert error is not None  # noqa: S101 - there is at least one URL
        raise BroadcastError(f"Nothing was broadcast: {self._place} cannot be used: {described(error)}.") from error

    async def _open(self, url: str, deadline: float) -> Any:
        client: Any = _import_nats().NATS()
        longest = asyncio.get_running_loop().time() + 2 * self._options["connect_timeout"]
        try:
            # nats-py accepts messages while it reconnects. So `allow_reconnect` is False, and `_connected` reconnects.
            async with asyncio.timeout_at(min(longest, deadline)):
                await client.connect(
                    [url],
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # with 0 or less, nats-py would try for ever
                    reconnect_time_wait=0,
                    # Otherwise, `flush` may send its PING before messages that were published earlier.
                    pending_size=1,
                    error_cb=self._note_error,
                    **self._options,
                )
        except BaseException as error:
            self._discard(client)
            if isinstance(error, _import_nats().errors.NoServersError) and self._last_error is not None:
                raise self._last_error from error  # `NoServersError` contains no reason
            raise
        return client

    async def _note_error(self, error: Exception) -> None:
        self._last_error = error
        if "permissions violation" in str(error).lower():
            self._refused += 1

    def _discard(self, client: Any) -> None:
        """Stop using a client, and close it. Nothing waits for the end, because a server that hangs delays it."""
        if self._client is client:
            self._client = None
        self._keep(asyncio.create_task(_close(client)))

    def _keep(self, task: asyncio.Task[Any] | None) -> None:
        """Let the thread run until a task has ended."""
        assert task is not None  # noqa: S101 - for the type checker
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _close(client: Any) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await client.close()


def _import_nats() -> Any:
    """Import and return nats-py, which is an optional dependency.

    Raises:
        ImproperlyConfigured: nats-py is not installed.
    """
    try:
        import nats
    except ImportError as error:
        raise ImproperlyConfigured(
            "RELIABLE_CABLE['BROADCAST_ADAPTER'] is 'nats', which needs the Python package nats-py: "
            "pip install 'reliable_cable[nats]'"
        ) from error
    return nats


#: Connections of a parent process. They are kept, because asyncio reports tasks that are deleted before they end.
_inherited: list[_Connection] = []


def _abandon(connection: _Connection) -> None:
    """End the thread of an adapter that is not used any more. A forked process leaves the connection to its parent."""
    if connection.pid == os.getpid():
        connection.stop()
    else:
        _inherited.append(connection)
