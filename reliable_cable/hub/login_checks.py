"""Checks the logins of connections regularly, and closes connections whose logins are no longer valid."""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar

from reliable_cable.concurrency.outages import is_outage
from reliable_cable.concurrency.retrying import BACKGROUND_RETRY_DELAY
from reliable_cable.concurrency.tasks import cancel, wait_and_clear
from reliable_cable.identity import condition_keys, matches
from reliable_cable.logins import SESSION, AnyLogin, check_logins
from reliable_cable.logs import logger
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.protocol.control import LoginChange

from .revocations import LatestByCondition

T = TypeVar("T")

#: The number of rounds in `REAUTHENTICATE_INTERVAL` seconds. Each round checks the logins that are due.
ROUNDS: Final = 20
#: The maximum number of logins that are looked up in one thread hop. With a larger batch, the event loop would wait too
#: long for the GIL.
BATCH_SIZE: Final = 100
#: The minimum time between two checks of a login, as a fraction of the maximum time. The actual time is random, so
#: that logins that were due together, for example after an outage, are not always checked together.
SPREAD: Final = 0.8
#: How long, in seconds, login changes are remembered. They may concern connections that are still being accepted.
ACCEPT_TIME: Final = 10.0


class LoggedIn(Protocol):
    """The part of a connection that `LoginChecks` uses."""

    @property
    def login(self) -> AnyLogin | None:
        """The login; None if the connection was not authenticated by a Django session or a token."""

    @property
    def namespace(self) -> str:
        """The namespace of the connection; `""` if it has none."""

    async def run_isolated(self, call: Callable[[], T]) -> T:
        """Run a sync function in the same way as a sync handler of the connection."""

    def close(self, reason: DisconnectReason, *, reconnect: bool | None = None) -> None:
        """Close the connection, and tell the client the reason. See `Connection.close`."""


class LoginChecks:
    """Checks the logins of the connections of an event loop.

    The first check of a login is at a random time in the interval. Logins that are due are looked up in batches. All
    logins of a batch have the same namespace. The look-up of a batch runs like a handler of one of its connections,
    which is chosen at random. If the setting `NAMESPACE` is not used, some of the logins may belong to other tenants
    than this connection. So if a login seems to be invalid, it is looked up again. This look-up runs like a handler of
    the login's own connection. The connection is closed only if this look-up finds the login invalid, too. If a look-up
    fails with an error, it is repeated later, and no connection is closed.

    Args:
        interval: the maximum time, in seconds, between two checks of a login. If it is None or 0, a login is
            checked only after an announced change (`handle`).
    """

    def __init__(self, interval: float | None) -> None:
        self._tick = interval / ROUNDS if interval else None
        #: The maximum time, in seconds, until a login is due. The check may be later by one round, which takes `_tick`
        #: seconds.
        self._period = interval - interval / ROUNDS if interval else math.inf
        #: The logins, by connection. Connections without a login are left out.
        self._logins: dict[LoggedIn, AnyLogin] = {}
        #: The times of the latest announced changes, by the identifiers of the changed user or session.
        self._changes: LatestByCondition[float] = LatestByCondition()
        self._announced = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def add(self, connection: LoggedIn) -> None:
        """Begin to check the login of a connection. Nothing happens if the connection has no login."""
        if connection.login is None:
            return
        self._logins[connection] = connection.login
        self._postpone(connection.login, least=0.0)
        if self._changes and self._has_just_changed(connection.login):
            self._check_soon(connection.login)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="cable-logins")

    def remove(self, connection: LoggedIn) -> None:
        """Stop checking the login of a connection that has ended."""
        self._logins.pop(connection, None)
        if not self._logins and self._task is not None:
            self._task.cancel()
            self._task = None

    def handle(self, change: LoginChange) -> None:
        """Handle an announced change of logins.

        If a Django session has ended, close its connections. If a user was changed, check all logins of the user now.
        """
        self._changes.put(change.condition, asyncio.get_running_loop().time())
        for connection, login in list(self._logins.items()):
            if not matches(change.condition, login.identity):
                continue
            if SESSION in change.condition:
                _end(connection)
            else:
                self._check_soon(login)

    def check_all(self) -> None:
        """Check all logins now, because announcements of changes may have been lost."""
        for login in self._logins.values():
            self._check_soon(login)

    async def stop(self) -> None:
        """Cancel the task that checks the logins."""
        await cancel(self._task)
        self._task = None

    async def _run(self) -> None:
        while True:
            await wait_and_clear(self._announced, BACKGROUND_RETRY_DELAY if self._failing else self._tick)
            await self._check_due()

    async def _check_due(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = [connection for connection, login in self._logins.items() if login.due <= now]
        failed = False
        for batch in _batches(due):
            started = loop.time()
            error = await self._check([each for each in batch if each in self._logins])
            if error is not None:
                failed = True
                self._report(error)
            # With this pause, the checks use a thread for at most half of the time.
            await asyncio.sleep(loop.time() - started)
        self._failing = failed

    async def _check(self, batch: Sequence[LoggedIn]) -> Exception | None:
        """Check a batch of logins, and close the connections whose logins are not valid.

        Returns:
            An error if some of the logins could not be checked; None otherwise. Logins that were not checked remain
            due.
        """
        if not batch:
            return None
        logins = [self._logins[connection] for connection in batch]
        for login in logins:
            # The next check is set before the look-up, because a change that is announced during the look-up makes the
            # login due again.
            self._postpone(login, least=SPREAD)
        # The choice is random, because `around_command` may fail for only some of the connections.
        chosen = random.choice(batch)  # noqa: S311 - no secret
        failure = None
        for connection, login, verdict in zip(batch, logins, await self._attempt(chosen, logins), strict=True):
            if verdict is False and connection is not chosen:
                (verdict,) = await self._attempt(connection, [login])
            if isinstance(verdict, Exception):
                failure = verdict
                login.due = 0.0
            elif not verdict:
                _end(connection)
        return failure

    async def _attempt(self, connection: LoggedIn, logins: Sequence[AnyLogin]) -> Sequence[bool | Exception]:
        try:
            return await connection.run_isolated(partial(check_logins, logins))
        except Exception as error:
            return [error] * len(logins)

    def _has_just_changed(self, login: AnyLogin) -> bool:
        since = asyncio.get_running_loop().time() - ACCEPT_TIME
        return any(self._changes.get(key, -math.inf) >= since for key in condition_keys(login.identity))

    def _check_soon(self, login: AnyLogin) -> None:
        login.due = 0.0
        self._announced.set()

    def _postpone(self, login: AnyLogin, *, least: float) -> None:
        delay = random.uniform(self._period * least, self._period) if self._tick else math.inf  # noqa: S311 - no secret
        login.due = asyncio.get_running_loop().time() + delay

    def _report(self, error: Exception) -> None:
        logger.log(
            logging.DEBUG if self._failing else logging.WARNING,
            "Logins could not be checked. No connection was closed because of this; trying again: %s",
            error,
            exc_info=None if self._failing or is_outage(error) else error,
        )
        self._failing = True


def _batches(connections: Iterable[LoggedIn]) -> Iterator[Sequence[LoggedIn]]:
    """Divide connections into batches. All connections of a batch have the same namespace."""
    groups: dict[str, list[LoggedIn]] = {}
    for connection in connections:
        groups.setdefault(connection.namespace, []).append(connection)
    for group in groups.values():
        for start in range(0, len(group), BATCH_SIZE):
            yield group[start : start + BATCH_SIZE]


def _end(connection: LoggedIn) -> None:
    # The client may reconnect, because its browser may have another login by now. The consumer's `connect` then accepts
    # or refuses the connection.
    connection.close(DisconnectReason.REMOTE, reconnect=True)
