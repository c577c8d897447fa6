"""The table `CLOSINGS`, which defines how a connection is closed for each reason.

See Architecture: The life of a connection.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from reliable_cable.protocol.constants import DisconnectReason


class SessionFate(Enum):
    """The possible effects of closing a connection on its session."""

    #: The client may restore the session.
    KEPT = "kept"
    #: Another connection has taken over the session.
    HANDED_OVER = "handed over"
    #: No client may restore the session.
    FORGOTTEN = "forgotten"


class Notified(Enum):
    """The clients that are sent a `disconnect` frame. `BASE` stands for all clients whose protocol has no sessions.

    The frame makes a client forget its session.
    """

    ALL = "all"
    BASE = "base"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Closing:
    """The way in which a connection is closed for one reason.

    Attributes:
        session: the effect on the session.
        notified: the clients that are sent a `disconnect` frame.
        reconnect: whether the client is told to reconnect. The caller of `close` can override this.
        abort: whether the socket is dropped at once. If False, the queued frames are sent first.
        reading: whether the server continues to read until the client closes the socket.
    """

    session: SessionFate
    notified: Notified
    reconnect: bool = False
    abort: bool = False
    reading: bool = True


_RECOVER = Closing(SessionFate.KEPT, Notified.BASE, reconnect=True)
_REFUSE = Closing(SessionFate.FORGOTTEN, Notified.ALL)
_STOP_READING = Closing(SessionFate.FORGOTTEN, Notified.ALL, reconnect=True, reading=False)

CLOSINGS: Final[Mapping[DisconnectReason, Closing]] = {
    DisconnectReason.SERVER_RESTART: _RECOVER,
    DisconnectReason.NO_PONG: _RECOVER,
    DisconnectReason.TOO_SLOW: Closing(SessionFate.KEPT, Notified.NONE, reconnect=True, abort=True),
    DisconnectReason.SUPERSEDED: Closing(SessionFate.HANDED_OVER, Notified.NONE, abort=True),
    DisconnectReason.REMOTE: _REFUSE,
    DisconnectReason.UNAUTHORIZED: _REFUSE,
    DisconnectReason.TOKEN_EXPIRED: _REFUSE,
    DisconnectReason.IDLE_TIMEOUT: _REFUSE,
    DisconnectReason.INVALID_REQUEST: _STOP_READING,
    DisconnectReason.RATE_LIMITED: _STOP_READING,
}
