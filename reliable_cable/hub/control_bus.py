"""The control bus, over which server processes send each other control messages.

A control message tells the other processes to close connections, to end subscriptions or to check logins. It is a
stored message of a reserved stream. Each hub with connections observes this stream. So the bus works with every stream
store, and a process that was disconnected from the store reads the messages that it has missed.
"""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from reliable_cable.concurrency.retrying import BACKGROUND_RETRY_DELAY, retry
from reliable_cable.concurrency.tasks import BackgroundTasks
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.exceptions import BroadcastError, StoreError
from reliable_cable.identity import condition_keys, matches
from reliable_cable.logs import logger
from reliable_cable.protocol import control
from reliable_cable.protocol.constants import REVOKED, DisconnectReason
from reliable_cable.protocol.control import (
    LoginChange,
    Revocation,
    SubscriptionRevocation,
    Takeover,
)
from reliable_cable.stores.engine import Engine
from reliable_cable.stores.sessions.base import is_revoked
from reliable_cable.stores.streams.base import Message

from .connections import Connections, HubConnection
from .login_checks import LoginChecks
from .revocations import LatestByCondition, RecentRevocations, concerns, last_revoked
from .session_records import SessionRecords
from .stream import HubStream, StreamObserver

#: How long, in seconds, takeovers are collected before they are announced together. A takeover is the restore of a
#: session by a new connection, after which the former connection must be closed.
ANNOUNCE_DELAY: Final = 0.02
#: The maximum number of takeovers in an announcement.
MAX_TAKEOVERS: Final = 500
#: The time, in seconds, over which the closing of connections is spread when all clients must be authenticated again.
REAUTHENTICATION_TIME: Final = 10.0


class ControlBus:
    """Receives and sends the control messages of an event loop.

    While there are connections, it also measures the differences between the clocks of the stores and of this host (see
    `StoreClock`).

    Args:
        engine: the stores.
        connections: the connections of this event loop.
        records: the session records of this event loop.
        logins: the object that checks the logins of the connections.
        tasks: the background tasks of this event loop.
        observe: a function that opens a stream for an observer.
        stop_observing: a function that closes a stream that `observe` has opened.
    """

    def __init__(
        self,
        engine: Engine,
        connections: Connections,
        records: SessionRecords,
        logins: LoginChecks,
        tasks: BackgroundTasks,
        observe: Callable[[str, StreamObserver], Awaitable[HubStream]],
        stop_observing: Callable[[HubStream], None],
    ) -> None:
        self._engine = engine
        self._connections = connections
        self._records = records
        self._logins = logins
        self._tasks = tasks
        self._observe = observe
        self._stop_observing = stop_observing
        self._users = 0
        self._observing: asyncio.Task[HubStream] | None = None
        self._clocks: list[asyncio.Task[None]] = []
        #: The latest revocations of connections, by the identifiers of the revoked connections. They are remembered,
        #: because they may concern connections that are still being accepted.
        self._revocations: LatestByCondition[Revocation] = LatestByCondition()
        #: The latest revocations of subscriptions. They are remembered, because they may concern subscriptions that are
        #: still being made.
        self.recent = RecentRevocations()
        self._takeovers: list[Takeover] = []
        #: The session ids of the new connections whose takeovers this process announces. An id is removed when its
        #: announcement comes back over the control bus or can no longer come back, and when the connection ends.
        self._unconfirmed: set[str] = set()
        self._announcing: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None

    # -- receiving ----------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Begin to receive control messages, starting with the stored ones. Call this once for each new connection."""
        self._users += 1
        if self._observing is None:
            loop = asyncio.get_running_loop()
            self._observing = loop.create_task(self._start_observing(), name="cable-control")
            clocks = (self._engine.session_clock, self._engine.stream_clock)
            self._clocks = [loop.create_task(clock.keep(), name="cable-clock") for clock in clocks]

    def release(self, connection: HubConnection) -> None:
        """Stop receiving control messages if this was the last connection. Call this for each ended connection."""
        self._unconfirmed.discard(connection.sid)
        self._users -= 1
        if self._users == 0 and self._observing is not None:
            for clock in self._clocks:
                clock.cancel()
            observing, self._observing = self._observing, None
            if observing.done():
                self._stop_observing(observing.result())
            else:
                observing.cancel()

    async def _start_observing(self) -> HubStream:
        # The clock must be measured first, because the time of a revocation is compared with the time when a connection
        # was authenticated.
        await self._engine.session_clock.ready()
        observe = partial(self._observe, CONTROL_STREAM, self)
        return await retry(observe, "Control messages cannot be read", delay=BACKGROUND_RETRY_DELAY)

    def receive(self, data: str) -> None:
        """Handle a control message, which this process or another one has sent."""
        try:
            for message in control.decode(data):
                match message:
                    case Revocation():
                        self._revoke(message)
                    case SubscriptionRevocation():
                        self._revoke_subscriptions(message)
                    case Takeover():
                        self._supersede(message)
                    case LoginChange():
                        self._logins.handle(message)
        except Exception:
            # A server of another version may have sent the message. Later messages must still be handled.
            logger.exception("A control message of %d characters could not be handled.", len(data))

    def _revoke(self, revocation: Revocation) -> None:
        self._revocations.put(revocation.condition, revocation)
        for connection in self._connections.all():
            if matches(revocation.condition, connection.identity):
                _close_if_revoked(connection, revocation.at, reconnect=revocation.reconnect)

    def close_if_revoked(self, connection: HubConnection) -> bool:
        """Close a connection if it was revoked after its authentication. Return whether it was closed."""
        for key in condition_keys(connection.identity) if self._revocations else ():
            revocation = self._revocations.get(key)
            if revocation is not None and _close_if_revoked(connection, revocation.at, reconnect=revocation.reconnect):
                return True
        return False

    def _revoke_subscriptions(self, revocation: SubscriptionRevocation) -> None:
        self.recent.add(revocation)
        for connection in self._connections.all():
            if matches(revocation.condition, connection.identity):
                revoked = [
                    identifier
                    for identifier, subscription in connection.subscriptions.items()
                    if concerns(revocation, subscription.scopes(), subscription.authorized)
                ]
                if revoked:
                    connection.revoke(revoked, revocation.reason, revocation.at)

    def _supersede(self, takeover: Takeover) -> None:
        self._unconfirmed.discard(takeover.successor)
        connection = self._connections.find(takeover.sid)
        if connection is None or takeover.successor in connection.sids:
            return  # the connection is the successor, or has restored its session
        # If both connections have restored the same former session, the connection that was announced later stays open.
        # If the announcement of `connection` has not come back yet, it is later than the announcement of `takeover`.
        if connection.sid == takeover.sid or connection.sid not in self._unconfirmed:
            connection.close(DisconnectReason.SUPERSEDED)

    # -- announcing ---------------------------------------------------------------------------------------------------

    def announce_takeover(self, sid: str, successor: HubConnection) -> None:
        """Announce that a connection has restored a session, so that the process with the former connection closes it.

        Args:
            sid: the id of the restored session.
            successor: the new connection.
        """
        self._unconfirmed.add(successor.sid)
        self._takeovers.append(Takeover(sid, successor.sid))
        if self._announcing is None:
            self._announcing = self._tasks.spawn(self._announce())

    async def _announce(self) -> None:
        try:
            await asyncio.sleep(ANNOUNCE_DELAY)
            while self._takeovers:
                batch, self._takeovers = self._takeovers[:MAX_TAKEOVERS], self._takeovers[MAX_TAKEOVERS:]
                await self._append(batch)
        finally:
            self._announcing = None

    async def _append(self, takeovers: Sequence[Takeover]) -> None:
        message = Message(control.encode_takeovers(takeovers), idempotency_key=secrets.token_hex(8))
        append = partial(self._engine.streams.aappend, [(CONTROL_STREAM, message)])
        errors = (BroadcastError, StoreError)
        until = asyncio.get_running_loop().time() + self._engine.sessions.settings.sessions_ttl
        try:
            await retry(
                append, "Takeovers cannot be announced", delay=BACKGROUND_RETRY_DELAY, errors=errors, until=until
            )
        except Exception:
            logger.exception("%d takeovers of sessions could not be announced.", len(takeovers))
            self._unconfirmed.difference_update(takeover.successor for takeover in takeovers)

    # -- losses -------------------------------------------------------------------------------------------------------

    def messages_lost(self) -> None:
        """After a loss of control messages, check all logins, and look up the revocations of all connections."""
        logger.warning("Control messages were lost. The revocations and the login of every connection are checked.")
        # The lost messages may include announcements of this process, which then never come back.
        self._unconfirmed.clear()
        self._logins.check_all()
        if self._checking is None:
            self._checking = self._tasks.spawn(self._check())

    async def _check(self) -> None:
        try:
            sure, revoked_at = await retry(
                self._read_revocations, "Revocations cannot be read", delay=BACKGROUND_RETRY_DELAY
            )
            await retry(self._check_subscriptions, "Revocations cannot be read", delay=BACKGROUND_RETRY_DELAY)
        finally:
            self._checking = None
        for connection, at in revoked_at:
            if not _close_if_revoked(connection, at, reconnect=True) and not sure:
                # The store may have lost revocations. So all clients must be authenticated again.
                delay = random.uniform(0, REAUTHENTICATION_TIME)  # noqa: S311 - spreads load, no secret
                asyncio.get_running_loop().call_later(delay, connection.close, DisconnectReason.SERVER_RESTART)
        if not sure:
            logger.warning("Revocations may have been lost. All clients must reconnect and be authenticated again.")

    async def _read_revocations(self) -> tuple[bool, list[tuple[HubConnection, float]]]:
        """Look up the latest revocation of each connection in the session store.

        Returns:
            Whether it is certain that the store has lost no revocation, and a list of pairs. Each pair is a connection
            and the time of its latest revocation; 0 if it was not revoked.
        """
        sure = self._records.enabled and await self._records.losses.refresh()
        connections = self._connections.all()
        times = await self._engine.sessions.arevoked([each.identity for each in connections])
        return sure, list(zip(connections, times, strict=True))

    async def _check_subscriptions(self) -> None:
        """End the subscriptions that were revoked according to the session store.

        Their clients receive the reason `REVOKED`, because the store does not contain the reasons of revocations.
        """
        checked = [
            (connection, identifier, subscription)
            for connection in self._connections.all()
            for identifier, subscription in connection.subscriptions.items()
        ]
        times = await last_revoked(
            self._engine.sessions, [(connection.identity, each.scopes()) for connection, _, each in checked]
        )
        for (connection, identifier, subscription), at in zip(checked, times, strict=True):
            if (
                connection.subscriptions.get(identifier) is subscription
                and at
                and is_revoked(subscription.authorized, [at])
            ):
                connection.revoke([identifier], REVOKED, at)


def _close_if_revoked(connection: HubConnection, at: float, *, reconnect: bool) -> bool:
    """Close a connection if it was authenticated before a revocation. Return whether it was closed.

    Args:
        connection: a connection that the revocation selects by its identifiers.
        at: the time of the revocation, by the session store's clock.
        reconnect: whether the client should reconnect.
    """
    if not is_revoked(connection.authenticated, [at]):
        return False
    # Clocks are not exact. If the client seems to have been authenticated after the revocation, it may reconnect.
    connection.close(DisconnectReason.REMOTE, reconnect=reconnect or connection.authenticated > at)
    return True
