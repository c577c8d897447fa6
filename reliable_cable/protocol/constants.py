"""The constants of the wire protocol: message types, reasons, close codes, headers and limits."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final


class Subprotocol(StrEnum):
    """The supported WebSocket subprotocols, the preferred one first (see Protocol: Handshake)."""

    EXTENDED_JSON = "actioncable-v1-ext-json"
    BASE_JSON = "actioncable-v1-json"

    @property
    def extended(self) -> bool:
        """Whether the subprotocol has stream positions, history, restored sessions, presence and whispers."""
        return self is Subprotocol.EXTENDED_JSON


#: All subprotocols. Iterating over this tuple is much faster than iterating over the enumeration.
_PREFERRED_FIRST: Final = tuple(Subprotocol)


def negotiate(offered: Iterable[str]) -> Subprotocol | None:
    """Return the most preferred subprotocol that a client offers; None if the client offers no supported one."""
    names = set(offered)
    return next((subprotocol for subprotocol in _PREFERRED_FIRST if subprotocol in names), None)


class MessageType(StrEnum):
    """The `type` of a message that the server sends."""

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
    """The reasons for which a server closes a connection. Most of them are sent in `disconnect` frames."""

    UNAUTHORIZED = "unauthorized"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a reason, not a secret
    IDLE_TIMEOUT = "idle_timeout"
    REMOTE = "remote"
    INVALID_REQUEST = "invalid_request"
    RATE_LIMITED = "rate_limited"
    SERVER_RESTART = "server_restart"
    NO_PONG = "no_pong"
    TOO_SLOW = "too_slow"
    #: The client has opened a new connection. This reason is never sent.
    SUPERSEDED = "superseded"


class CallFailure(StrEnum):
    """The reasons why a call to an action has no result. The values are sent in answers (see Protocol: Calls)."""

    #: The action raised an error, or its result cannot be sent.
    FAILED = "failed"
    #: The action or `before_action` has refused the call.
    REFUSED = "refused"
    UNKNOWN_ACTION = "unknown_action"
    NOT_SUBSCRIBED = "not_subscribed"


#: The key in an action's data by which a client asks for an answer. Its value is the id of the call.
CALL: Final = "$call"
#: The key that marks a message as the answer to a call. Its value is the id of the call.
ANSWER: Final = "$answer"
#: The maximum length of a call's id, in characters.
MAX_CALL_ID_LENGTH: Final = 64

#: The `type` of the message that tells a client that a subscription was revoked. The same string is the default reason
#: of a revocation.
REVOKED: Final = "revoked"

#: The usual close code. All servers can send it, and all clients reconnect after it.
CLOSE_NORMAL: Final = 1000
#: The close code that a browser sends when the web page is closed, reloaded or left.
CLOSE_GOING_AWAY: Final = 1001

#: The `reason` in the ASGI message `websocket.close` if a handshake is refused temporarily. For server-sent events, the
#: response then has the status 200, because browsers do not reconnect after an error status. WebSocket clients
#: reconnect after every refusal. The reason `DisconnectReason.RATE_LIMITED` has the same effect.
TRY_AGAIN: Final = "try again"

#: The `reason` of a `websocket.close` that refuses a handshake because of its header `Origin`.
WRONG_ORIGIN: Final = "origin"

#: The maximum length of a member's id, in characters.
MAX_MEMBER_ID_LENGTH: Final = 255
#: The maximum size of a member's info as JSON, in bytes.
MAX_MEMBER_INFO_SIZE: Final = 4096

#: The name of the handshake's header with the id of the session to restore.
SESSION_HEADER: Final = b"x-anycable-restore-sid"
#: The query parameter for the id of the session to restore, for clients that cannot set headers, such as browsers.
SESSION_PARAMETER: Final = "sid"

#: The shortest ping interval, in seconds, that a client can request with the query parameter `pi`.
PING_INTERVAL_MIN: Final = 1.0
#: The longest ping interval, in seconds, that a client can request.
PING_INTERVAL_MAX: Final = 60.0
