"""The messages that the server processes of a project send to each other over the control bus."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .constants import REVOKED


@dataclass(frozen=True, slots=True)
class Revocation:
    """A message that closes the connections that were authenticated before a certain time.

    Attributes:
        condition: the identifiers that all these connections have, and their namespace.
        at: the time, in seconds since 1970 by the session store's clock.
        reconnect: whether the clients reconnect.
    """

    condition: Mapping[str, str]
    at: float
    reconnect: bool


@dataclass(frozen=True, slots=True)
class SubscriptionRevocation:
    """A message that ends the subscriptions that were made before a certain time.

    Attributes:
        condition: the identifiers that the connections of these subscriptions have, and their namespace. Without
            identifiers, it matches all connections of the namespace.
        scope: names the channel or a stream of the subscriptions, see `identity.subscription_scopes`.
        at: the time, in seconds since 1970 by the session store's clock.
        reason: the reason that is sent to the clients.
    """

    condition: Mapping[str, str]
    scope: Mapping[str, str]
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Takeover:
    """A message that closes the former connection of a client that has reconnected.

    Attributes:
        sid: the session that was restored.
        successor: the session id of the new connection.
    """

    sid: str
    successor: str


@dataclass(frozen=True, slots=True)
class LoginChange:
    """A message that a Django login has ended, or may have ended.

    Attributes:
        condition: names a Django session or a user, in the form of `logins.Login.identity`. The login of this session
            has ended. The logins of this user must be checked.
    """

    condition: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class UnsharedPresence:
    """A message from a process that has members in a presence store in its own memory.

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

    Servers of older releases do not know the key `subscriptions`, and take the message for a `Revocation`. They close
    all connections that match the condition. The clients then reconnect and subscribe again.
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
    """Return the control message, as JSON text, that other processes cannot see the members of this one."""
    return json.dumps({"unshared_presence": message.incarnation, "at": message.at})


def decode(text: str) -> Sequence[ControlMessage]:
    """Return the contents of a control message: several takeovers, or one of the others.

    Raises:
        ValueError, KeyError, TypeError: the text is not a control message of this version.
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
