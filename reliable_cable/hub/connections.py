"""Finds the connections of an event loop by their session ids."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Protocol

from reliable_cable.identity import Identity
from reliable_cable.logs import logger
from reliable_cable.protocol.constants import DisconnectReason, Subprotocol

from .heartbeat import Pinged
from .login_checks import LoggedIn
from .revocations import RevocableSubscription
from .session_writer import LiveSession


class HubConnection(LiveSession, Pinged, LoggedIn, Protocol):
    """The part of a connection that the hub uses (see `connection.connection.Connection`)."""

    #: Whether the session of the connection can be restored.
    resumable: bool

    @property
    def identity(self) -> Identity:
        """The identity of the connection (see `identity.Identity`)."""

    @property
    def subscriptions(self) -> Mapping[str, RevocableSubscription]:
        """The subscriptions, by identifier."""

    @property
    def authenticated(self) -> float:
        """The time when the client was authenticated, by the session store's clock."""

    def revoke(self, identifiers: Collection[str], reason: str, at: float) -> None:
        """End subscriptions that were revoked, and send the reason to the client.

        Args:
            identifiers: the identifiers of the subscriptions.
            reason: the reason that the client receives.
            at: the time of the revocation, by the session store's clock.
        """

    async def drain(self, delay: float) -> None:
        """Wait for `delay` seconds and for the pending commands, then close the connection. Its client reconnects."""


class Connections:
    """The open connections of an event loop."""

    def __init__(self) -> None:
        self._by_sid: dict[str, HubConnection] = {}
        #: The connections, by the ids of their own sessions and of the former sessions that they have restored.
        self._by_any_sid: dict[str, HubConnection] = {}
        self._all_closed = asyncio.Event()
        self._base_client_reported = False

    def __len__(self) -> int:
        return len(self._by_sid)

    def all(self) -> list[HubConnection]:
        """Return all connections of the event loop that have not been removed."""
        return list(self._by_sid.values())

    def find(self, sid: str) -> HubConnection | None:
        """Return the connection that has this session or has restored it; None if there is no such connection."""
        return self._by_any_sid.get(sid)

    def add(self, connection: HubConnection) -> None:
        """Add a connection. If its session has a former connection that is still open, close the former connection.

        If two connections restore the same session at the same time, the connection that was authenticated earlier is
        closed, because the client gave up that connection before it opened the other one.
        """
        self._by_sid[connection.sid] = connection
        for sid in connection.sids:
            other = self._by_any_sid.get(sid)
            if other is not None and other is not connection:
                if other.authenticated > connection.authenticated:
                    connection.close(DisconnectReason.SUPERSEDED)
                    return
                other.close(DisconnectReason.SUPERSEDED)
            self._by_any_sid[sid] = connection

    def report_base_client(self) -> None:
        """Log a warning that a client of the base protocol loses messages. Only the first call logs it."""
        if self._base_client_reported:
            return
        self._base_client_reported = True
        logger.warning(
            "A client speaks the base protocol (%s). It loses the messages that are sent while it is disconnected. Use "
            '@anycable/web with createCable({protocol: "%s"}) in the web page. This is logged only for the first such '
            "client of the process.",
            Subprotocol.BASE_JSON,
            Subprotocol.EXTENDED_JSON,
        )

    def remove(self, connection: HubConnection) -> None:
        """Remove a connection that has ended."""
        self._by_sid.pop(connection.sid, None)
        for sid in connection.sids:
            if self._by_any_sid.get(sid) is connection:
                del self._by_any_sid[sid]
        if not self._by_sid:
            self._all_closed.set()

    async def wait_closed(self) -> None:
        """Wait until all connections have ended."""
        while self._by_sid:
            self._all_closed.clear()
            await self._all_closed.wait()
