"""Names on the wire (PROTOCOL.md)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final


class Subprotocol(StrEnum):
    """WebSocket subprotocols, best first."""

    EXTENDED_JSON = "actioncable-v1-ext-json"
    BASE_JSON = "actioncable-v1-json"

    @property
    def extended(self) -> bool:
        """Whether sessions can be restored, and streams have positions, history, presence and whispers."""
        return self is Subprotocol.EXTENDED_JSON


#: A tuple of an enumeration's members is much faster to go through than the enumeration.
_BEST_FIRST: Final = tuple(Subprotocol)


def negotiate(offered: Iterable[str]) -> Subprotocol | None:
    """Return the best subprotocol among those a client offers, None if there is none in common."""
    names = set(offered)
    return next((subprotocol for subprotocol in _BEST_FIRST if subprotocol in names), None)


class MessageType(StrEnum):
    """The `type` of what servers send."""

    WELCOME = "welcome"
    PING = "ping"
    PONG = "pong"
    CONFIRM_SUBSCRIPTION = "confirm_subscription"
    REJECT_SUBSCRIPTION = "reject_subscription"
    CONFIRM_HISTORY = "confirm_history"
    REJECT_HISTORY = "reject_history"
    PRESENCE = "presence"
    DISCONNECT = "disconnect"


class DisconnectReason(StrEnum):
    """Why a server closes a connection. The values are sent in `disconnect` frames."""

    UNAUTHORIZED = "unauthorized"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a reason, no secret
    IDLE_TIMEOUT = "idle_timeout"
    REMOTE = "remote"
    INVALID_REQUEST = "invalid_request"
    SERVER_RESTART = "server_restart"
    NO_PONG = "no_pong"
    TOO_SLOW = "too_slow"
    #: The client is connected anew. No frame has this reason.
    SUPERSEDED = "superseded"


#: The only close code that all servers can send and after which every client comes back.
CLOSE_NORMAL: Final = 1000

#: Header and query parameter with the id of the session to be restored.
SESSION_HEADER: Final = b"x-anycable-restore-sid"
SESSION_PARAMETER: Final = "sid"

#: Bounds of `?pi=`, the ping interval a client asks for, in seconds.
PING_INTERVAL_MIN: Final = 1.0
PING_INTERVAL_MAX: Final = 60.0
