"""Checks again and again whether the Django logins of the connections are valid, and ends connections without one."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from reliable_cable.concurrency.outages import is_outage
from reliable_cable.concurrency.retrying import BACKGROUND_RETRY_DELAY
from reliable_cable.concurrency.tasks import cancel
from reliable_cable.concurrency.threads import run_handler
from reliable_cable.logins import Login, check_logins, session_digest
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.protocol.control import LoginChange

logger = logging.getLogger("reliable_cable")

#: Returns for each login whether it is valid, or the error that prevented its check.
LookUp = Callable[[Sequence[Login]], Awaitable[Sequence[bool | Exception]]]

#: In how many rounds the logins of an interval are checked.
ROUNDS: Final = 20
#: The most logins that are looked up in one thread hop. A larger batch would keep the event loop waiting for the GIL.
BATCH_SIZE: Final = 100
#: The shortest time between two checks of a login, as a part of the longest. Logins that were due at the same time, for
#: example after an outage, are spread by it.
SPREAD: Final = 0.8


async def _check_in_thread(logins: Sequence[Login]) -> Sequence[bool | Exception]:
    return await run_handler(check_logins, logins)


class LoggedIn(Protocol):
    """A connection that a Django login may have authenticated."""

    @property
    def login(self) -> Login | None:
        """The login. None: the connection was authenticated in another way, or not at all."""

    def close(self, reason: DisconnectReason, *, reconnect: bool | None = None) -> None:
        """Close the connection."""


class LoginChecks:
    """Checks the logins of the connections of one event loop.

    The first check of a login is made at a random time within the interval. Due logins are looked up together, in
    batches, in a handler thread. If a look-up fails, no connection ends, and the look-up is repeated.

    Args:
        interval: the longest time, in seconds, between two checks of a login. None or 0: logins are checked only after
            an announced change (`handle`).
        look_up: checks a batch of logins.
    """

    def __init__(self, interval: float | None, look_up: LookUp = _check_in_thread) -> None:
        self._look_up = look_up
        self._tick = interval / ROUNDS if interval else None
        #: The longest time until a login is due. The check is up to one tick late.
        self._period = interval - interval / ROUNDS if interval else math.inf
        #: The connections that have a login, with the login.
        self._logins: dict[LoggedIn, Login] = {}
        self._announced = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def add(self, connection: LoggedIn) -> None:
        """Check the login of a connection from now on. Does nothing if it has none."""
        if connection.login is None:
            return
        self._logins[connection] = connection.login
        self._postpone(connection.login, least=0.0)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="cable-logins")

    def remove(self, connection: LoggedIn) -> None:
        """Stop checking the login of a connection that has ended."""
        self._logins.pop(connection, None)
        if not self._logins and self._task is not None:
            self._task.cancel()
            self._task = None

    def handle(self, change: LoginChange) -> None:
        """End the connections of a session that was replaced, or check all logins of a user now."""
        for connection, login in list(self._logins.items()):
            if change.session and session_digest(login.session_key) == change.session:
                _end(connection)
            elif change.user and login.user_id == change.user:
                login.due = 0.0
                self._announced.set()

    async def stop(self) -> None:
        """Stop all checks."""
        await cancel(self._task)
        self._task = None

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(BACKGROUND_RETRY_DELAY if self._failing else self._tick):
                    await self._announced.wait()
            except TimeoutError:
                pass
            self._announced.clear()
            await self._check_due()

    async def _check_due(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = [connection for connection, login in self._logins.items() if login.due <= now]
        failed = False
        for start in range(0, len(due), BATCH_SIZE):
            started = loop.time()
            error = await self._check([each for each in due[start : start + BATCH_SIZE] if each in self._logins])
            if error is not None:
                failed = True
                self._report(error)
            # Use a thread for half of the time at the most.
            await asyncio.sleep(loop.time() - started)
        self._failing = failed

    async def _check(self, batch: Sequence[LoggedIn]) -> Exception | None:
        """Check a batch of logins, and end the connections whose logins are not valid.

        Returns:
            An error if some of the logins could not be checked. They stay due.
        """
        logins = [self._logins[connection] for connection in batch]
        for login in logins:
            # Before the look-up: a change that is announced meanwhile makes the login due again.
            self._postpone(login, least=SPREAD)
        try:
            verdicts = await self._look_up(logins)
        except Exception as error:
            verdicts = [error] * len(logins)
        failure = None
        for connection, login, verdict in zip(batch, logins, verdicts, strict=True):
            if isinstance(verdict, Exception):
                failure = verdict
                login.due = 0.0
            elif not verdict:
                _end(connection)
        return failure

    def _postpone(self, login: Login, *, least: float) -> None:
        shortest = self._period * least if least else 0.0
        delay = random.uniform(shortest, self._period) if self._tick else math.inf  # noqa: S311 - spreads load
        login.due = asyncio.get_running_loop().time() + delay

    def _report(self, error: Exception) -> None:
        logger.log(
            logging.DEBUG if self._failing else logging.WARNING,
            "Logins could not be checked, and no connection was closed for that; trying again: %s",
            error,
            exc_info=None if self._failing or is_outage(error) else error,
        )
        self._failing = True


def _end(connection: LoggedIn) -> None:
    # The browser may have another login by now: `connect` decides when the client returns.
    connection.close(DisconnectReason.REMOTE, reconnect=True)
