"""The connections of one event loop, by session id."""

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

    #: Whether the connection's session can be restored.
    resumable: bool

    @property
    def identity(self) -> Identity:
        """The values that identify the connection's owner, as texts."""

    @property
    def subscriptions(self) -> Mapping[str, RevocableSubscription]:
        """The subscriptions, by identifier."""

    @property
    def authenticated(self) -> float:
        """When the client was authenticated, by the session store's clock."""

    def revoke(self, identifiers: Collection[str], reason: str, at: float) -> None:
        """End the subscriptions with these identifiers, which were revoked at this time, and send the reason."""

    async def drain(self, delay: float) -> None:
        """Close the connection before the server stops."""


class Connections:
    """The open connections of one event loop."""

    def __init__(self) -> None:
        self._by_sid: dict[str, HubConnection] = {}
        #: The connections by each of their session ids, former ones included.
        self._by_any_sid: dict[str, HubConnection] = {}
        self._all_closed = asyncio.Event()
        self._base_client_reported = False

    def __len__(self) -> int:
        return len(self._by_sid)

    def all(self) -> list[HubConnection]:
        """Return all connections."""
        return list(self._by_sid.values())

    def find(self, sid: str) -> HubConnection | None:
        """Return the connection that has this session or continues it."""
        return self._by_any_sid.get(sid)

    def add(self, connection: HubConnection) -> None:
        """Add a connection. It supersedes the former connection of its session.

        If both connections restore the session at the same time, the one that was authenticated later stays, because
        the client opened it after it had given up the other one.
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
        """Log what a client of the base protocol loses. This is logged only once."""
        if self._base_client_reported:
            return
        self._base_client_reported = True
        logger.warning(
            "A client speaks the base protocol (%s). It loses the messages that are sent while it is disconnected. Let "
            'the page use @anycable/web with createCable({protocol: "%s"}). This is logged only for the first such '
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
        """Wait until every connection has ended."""
        while self._by_sid:
            self._all_closed.clear()
            await self._all_closed.wait()
