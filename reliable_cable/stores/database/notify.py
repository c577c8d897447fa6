"""Notifications between processes, by NOTIFY and LISTEN of PostgreSQL.

A notification is only a hint. It may be lost, so receivers also poll the database.
"""

import asyncio
import contextlib
import random
import secrets
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

from django.db import connections

from reliable_cable.concurrency.on_commit import is_manual
from reliable_cable.concurrency.threads import run_store
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import described
from reliable_cable.logs import logger

from .driver import uses_psycopg3
from .prepared import PreparedStatement, StaleStatementError

#: The maximum size of a payload, in bytes. PostgreSQL refuses payloads of 8000 bytes or more.
MAX_PAYLOAD: Final = 7900
#: The maximum number of notifications in a statement.
PAYLOADS_PER_STATEMENT: Final = 64
#: How long, in seconds, it may take to connect to the database.
CONNECT_TIMEOUT: Final = 10.0
#: How often, in seconds, a receiver sends a probe: a notification that shows it whether its own notifications arrive.
PROBE_INTERVAL: Final = 30.0
#: How long, in seconds, a probe may take to arrive.
PROBE_TIMEOUT: Final = 10.0
#: How often, in seconds, a probe is sent until one arrives. The connection that sends it may be broken.
PROBE_RETRY_INTERVAL: Final = 2.0
#: The first and the longest delay, in seconds, before a retry of a connection. The delay doubles with each failure.
RETRY_DELAYS: Final = (0.1, 5.0)
#: How long, in seconds, to wait before the next attempt if a connection pooler was found, or if none of this process's
#: own notifications has arrived.
SILENT_RETRY_DELAY: Final = 60.0

#: The first character of the payload of a probe. The payloads of callers must not begin with it.
PROBE: Final = "?"

#: An SQL expression for the name of the channel. Each schema has its own channel, because it has its own tables.
_CHANNEL: Final = (
    "'reliable_cable_' || COALESCE((SELECT oid::text FROM pg_namespace WHERE nspname = current_schema()), '')"
)


def supports_notify(settings: CableSettings) -> bool:
    """Return whether processes can notify each other: on PostgreSQL with psycopg 3, unless the settings forbid it.

    If `handler_threads` is 0, the result is False, because notifications need connections other than the caller's.
    """
    if settings.notify is False or not settings.handler_threads:
        return False
    return uses_psycopg3(connections[settings.database])


class NotificationSender:
    """Sends notifications on the calling thread's connection, which must have no open transaction.

    Args:
        alias: the alias of the database.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._single = PreparedStatement(alias)

    def send(self, payloads: Sequence[str]) -> None:
        """Send notifications in transactions that contain nothing else.

        PostgreSQL holds a lock of the whole server while it commits a transaction with NOTIFY. These commits are quick,
        because they change no data, so PostgreSQL does not wait for the disk.

        Args:
            payloads: the payloads. Each of them has at most `MAX_PAYLOAD` bytes.

        Raises:
            django.db.Error: some or all notifications were not sent.
        """
        connection = connections[self._alias]
        for start in range(0, len(payloads), PAYLOADS_PER_STATEMENT):
            self._send(connection, payloads[start : start + PAYLOADS_PER_STATEMENT])
        if is_manual(connection):
            connection.commit()

    def _send(self, connection: Any, payloads: Sequence[str]) -> None:
        if len(payloads) == 1:
            with contextlib.suppress(StaleStatementError):
                self._single.execute(f"SELECT pg_notify({_CHANNEL}, %s)", payloads)
                return
        calls = ", ".join(["pg_notify(channel.name, %s)"] * len(payloads))
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {calls} FROM (SELECT {_CHANNEL} AS name) AS channel", payloads)  # noqa: S608


class _SilentError(Exception):
    """Raised if a process does not receive its own notifications."""


class _PooledError(Exception):
    """Raised if a connection goes through a connection pooler, and the setting `NOTIFY` is not an alias."""


async def _is_pooled(connection: Any) -> bool:
    """Return whether a connection goes through a connection pooler.

    A pooler invents the process id that it reports to its client. So this id differs from that of the server process.
    """
    async for (pid,) in await connection.execute("SELECT pg_backend_pid()"):
        return bool(pid != connection.info.backend_pid)
    return False


class NotificationReceiver:
    """Receives notifications on the running event loop, with a connection of its own.

    Args:
        settings: the settings; `notify` and `database` are used.
        received: a function that is called with each payload.
        changed: a function that is called when `working` has changed. Notifications may have been missed.
        probe: a function that sends a notification with a payload to all processes, without blocking.
    """

    def __init__(
        self,
        settings: CableSettings,
        received: Callable[[str], None],
        changed: Callable[[], None],
        probe: Callable[[str], None],
    ) -> None:
        self._database = settings.database
        self._alias = settings.notify if isinstance(settings.notify, str) else settings.database
        #: Whether the connection may go through a connection pooler.
        self._may_be_pooled = isinstance(settings.notify, str)
        self._poll_interval = settings.poll_interval
        self._received = received
        self._changed = changed
        self._probe = probe
        #: Whether notifications arrive, as shown by the probes.
        self.working = False
        self._failing = False

    async def run(self) -> None:
        """Receive notifications until cancelled. If the connection is lost, open another one."""
        try:
            await self._keep_receiving()
        finally:
            self.working = False

    async def _keep_receiving(self) -> None:
        delay, longest = RETRY_DELAYS
        while True:
            try:
                await self._receive()
            except _PooledError:
                self._report(
                    "its connections go through a connection pooler. Set RELIABLE_CABLE['NOTIFY'] to the alias of a "
                    f"direct connection, to {self._alias!r} if the pooler is in session mode, or to False"
                )
                pause = SILENT_RETRY_DELAY
            except _SilentError:
                if self.working:
                    self._report("its own notifications do not arrive any more")
                    pause = delay
                else:
                    self._report(
                        "its own notifications do not arrive. A connection pooler in transaction mode may be in "
                        f"between, or this is not the database {self._database!r}. Set RELIABLE_CABLE['NOTIFY'] to the "
                        "alias of a direct connection to that database, or to False"
                    )
                    pause = SILENT_RETRY_DELAY
            except Exception as error:
                self._report(described(error))
                pause = delay
            else:
                pause = delay  # the server has closed the connection
            delay = RETRY_DELAYS[0] if self.working else min(2 * delay, longest)
            self._end()
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - not all at once

    def _report(self, problem: str) -> None:
        if not self._failing:
            logger.warning(
                "This process cannot LISTEN on the database %r: %s. Until it can, it polls every %g s.",
                self._alias,
                problem,
                self._poll_interval,
            )
        self._failing = True

    async def _receive(self) -> None:
        from psycopg import AsyncConnection, sql

        parameters, channel = await run_store(self._parameters)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await AsyncConnection.connect(**parameters, autocommit=True)
        except BaseException as error:
            # psycopg closes an incomplete connection as soon as nothing refers to it.
            traceback.clear_frames(error.__traceback__)
            raise
        name = sql.Identifier(channel)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if not self._may_be_pooled and await _is_pooled(connection):
                    raise _PooledError
                await connection.execute(sql.SQL("LISTEN {}").format(name))
            try:
                await self._read(connection)
            except _SilentError:
                # A pooler may give this server connection to other clients, which must not receive notifications.
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        await connection.execute(sql.SQL("UNLISTEN {}").format(name))
                raise
        finally:
            await connection.close()

    def _parameters(self) -> tuple[dict[str, Any], str]:
        """Return the parameters of a connection, and the channel. This takes a query, so it runs in a thread.

        The channel is that of the processes that send notifications, which use the alias `database`.
        """
        parameters = dict(connections[self._alias].get_connection_params())
        # These are for sync connections that run Django's queries.
        for name in ("cursor_factory", "context", "prepare_threshold"):
            parameters.pop(name, None)
        with connections[self._database].cursor() as cursor:
            cursor.execute(f"SELECT {_CHANNEL}")
            (channel,) = cursor.fetchone()
        return {"fallback_application_name": "reliable_cable LISTEN", **parameters}, channel

    async def _read(self, connection: Any) -> None:
        """Pass on notifications until the connection breaks, or a notification of this process does not arrive."""
        loop = asyncio.get_running_loop()
        payload = PROBE + secrets.token_hex(8)
        broken: asyncio.Future[None] = loop.create_future()
        next_probe: asyncio.TimerHandle | None = None
        # `connection.notifies()` would cost several times the CPU time of `read` for each notification, and also some
        # CPU time while it waits.
        pgconn, socket, encoding = connection.pgconn, connection.fileno(), connection.info.encoding
        limit = asyncio.timeout(PROBE_TIMEOUT)

        def read() -> None:
            try:
                pgconn.consume_input()
                while (notification := pgconn.notifies()) is not None:
                    handle(notification.extra.decode(encoding))
            except Exception as error:
                loop.remove_reader(socket)
                if not broken.done():
                    broken.set_exception(error)

        def handle(text: str) -> None:
            nonlocal next_probe
            if not text.startswith(PROBE):
                self._received(text)
            elif text == payload:
                limit.reschedule(loop.time() + PROBE_INTERVAL + PROBE_TIMEOUT)
                if next_probe is not None:
                    next_probe.cancel()
                next_probe = loop.call_later(PROBE_INTERVAL, probe)
                self._begin()

        def probe() -> None:
            nonlocal next_probe
            next_probe = loop.call_later(PROBE_RETRY_INTERVAL, probe)
            self._probe(payload)

        try:
            async with limit:
                loop.add_reader(socket, read)
                probe()
                await broken
        except TimeoutError as error:
            raise _SilentError from error
        finally:
            loop.remove_reader(socket)
            if next_probe is not None:
                next_probe.cancel()

    def _end(self) -> None:
        if self.working:
            self.working = False
            self._changed()

    def _begin(self) -> None:
        if self.working:
            return
        self.working = True
        if self._failing:
            logger.info("This process can LISTEN on the database %r again.", self._alias)
        self._failing = False
        self._changed()
