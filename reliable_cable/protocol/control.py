"""The messages that the server processes of a project send to each other over the control bus."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .constants import REVOKED


@dataclass(frozen=True, slots=True)
class Revocation:
    """Close connections that were authenticated before a certain time.

    Attributes:
        condition: the identifiers that all these connections have, and their namespace.
        at: the time, in seconds since 1970 by the session store's clock.
        reconnect: whether the clients are to reconnect.
    """

    condition: Mapping[str, str]
    at: float
    reconnect: bool


@dataclass(frozen=True, slots=True)
class SubscriptionRevocation:
    """End subscriptions that were made before a certain time.

    Attributes:
        condition: the identifiers that all these connections have, and their namespace. Without identifiers, all
            connections of the namespace are meant.
        scope: names the channel or a stream of the subscriptions, see `identity.subscription_scopes`.
        at: the time, in seconds since 1970 by the session store's clock.
        reason: the reason that the clients are sent.
    """

    condition: Mapping[str, str]
    scope: Mapping[str, str]
    at: float
    reason: str


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
    """A Django login has ended, or may have ended.

    Attributes:
        condition: names a session or a user, in the form of `logins.Login.identity`. The login of such a session has
            ended. The logins of such a user must be checked.
    """

    condition: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class UnsharedPresence:
    """A process has members in a presence store that is in its own memory.

    Attributes:
        incarnation: identifies the data of that store.
        at: the time, in seconds since 1970 by the session store's clock.
    """

    incarnation: str
    at: float


ControlMessage = Revocation | SubscriptionRevocation | Takeover | LoginChange | UnsharedPresence


def encode_revocation(revocation: Revocation) -> str:
    """Return a control message with one revocation, as JSON text."""
    return json.dumps({"revoke": dict(revocation.condition), "at": revocation.at, "reconnect": revocation.reconnect})


def encode_subscription_revocation(revocation: SubscriptionRevocation) -> str:
    """Return a control message with one revocation of subscriptions, as JSON text.

    Servers of releases that do not know the key `subscriptions` take the message for a `Revocation`. They close all
    connections that match the condition, whose clients then subscribe again.
    """
    return json.dumps(
        {
            "revoke": dict(revocation.condition),
            "at": revocation.at,
            "reconnect": True,
            "subscriptions": dict(revocation.scope),
            "reason": revocation.reason,
        }
    )


def encode_takeovers(takeovers: Sequence[Takeover]) -> str:
    """Return a control message with several takeovers, as JSON text."""
    return json.dumps({"supersede": [(takeover.sid, takeover.successor) for takeover in takeovers]})


def encode_login_change(change: LoginChange) -> str:
    """Return a control message with one change of a login, as JSON text."""
    return json.dumps({"login": dict(change.condition)})


def encode_unshared_presence(message: UnsharedPresence) -> str:
    """Encode the message by which a process announces that other processes cannot see its members."""
    return json.dumps({"unshared_presence": message.incarnation, "at": message.at})


def decode(text: str) -> Sequence[ControlMessage]:
    """Return the contents of a control message: several takeovers, or one of the others.

    Raises:
        ValueError, KeyError, TypeError: it is not a control message of this version.
    """
    message: dict[str, Any] = json.loads(text)
    if "subscriptions" in message:
        reason = str(message.get("reason", REVOKED))
        scope = dict(message["subscriptions"])
        return [SubscriptionRevocation(dict(message["revoke"]), scope, float(message["at"]), reason)]
    if "revoke" in message:
        return [Revocation(dict(message["revoke"]), float(message["at"]), bool(message["reconnect"]))]
    if "login" in message:
        return [LoginChange(dict(message["login"]))]
    if "unshared_presence" in message:
        return [UnsharedPresence(str(message["unshared_presence"]), float(message["at"]))]
    return [Takeover(sid, successor) for sid, successor in message.get("supersede", ())]
