"""Control messages: what the server processes of a project tell each other over the control stream."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Revocation:
    """Close connections that were authenticated before a certain time.

    Attributes:
        condition: the identifiers that the connections have in common.
        at: the time, in seconds since 1970 by the session store's clock.
        reconnect: whether the clients are to reconnect.
    """

    condition: Mapping[str, str]
    at: float
    reconnect: bool


@dataclass(frozen=True, slots=True)
class Takeover:
    """A client has reconnected: close its former connection.

    Attributes:
        sid: the session that was restored.
        successor: the session id of the new connection.
    """

    sid: str
    successor: str


@dataclass(frozen=True, slots=True)
class LoginChange:
    """A Django login has ended, or may have ended. It names a user or a session.

    Attributes:
        user: check all logins of the user with this primary key.
        session: the login of the session with this digest has ended.
    """

    user: str = ""
    session: str = ""


def encode_revocation(revocation: Revocation) -> str:
    """Return a control message with one revocation, as JSON text."""
    return json.dumps({"revoke": dict(revocation.condition), "at": revocation.at, "reconnect": revocation.reconnect})


def encode_takeovers(takeovers: Sequence[Takeover]) -> str:
    """Return a control message with several takeovers, as JSON text."""
    return json.dumps({"supersede": [(takeover.sid, takeover.successor) for takeover in takeovers]})


def encode_login_change(change: LoginChange) -> str:
    """Return a control message with one change of a login, as JSON text."""
    return json.dumps({"login": {"user": change.user, "session": change.session}})


def decode(text: str) -> tuple[Revocation | None, Sequence[Takeover], LoginChange | None]:
    """Return the contents of a control message.

    Raises:
        ValueError, KeyError, TypeError: it is not a control message of this version.
    """
    message: dict[str, Any] = json.loads(text)
    revocation = None
    if "revoke" in message:
        revocation = Revocation(dict(message["revoke"]), float(message["at"]), bool(message["reconnect"]))
    takeovers = [Takeover(sid, successor) for sid, successor in message.get("supersede", ())]
    login = message.get("login")
    return revocation, takeovers, None if login is None else LoginChange(str(login["user"]), str(login["session"]))
