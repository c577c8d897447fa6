"""The messages between the server processes of a project, which are sent over the control bus."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .constants import REVOKED


@dataclass(frozen=True, slots=True)
class Revocation:
    """A message that closes the connections that have certain identifiers and were authenticated before a certain time.

    Attributes:
        condition: the identifiers and the namespace of the connections.
        at: the time before which the connections were authenticated, in seconds since 1970 by the session store's
            clock.
        reconnect: whether the clients are told to reconnect.
    """

    condition: Mapping[str, str]
    at: float
    reconnect: bool


@dataclass(frozen=True, slots=True)
class SubscriptionRevocation:
    """A message that ends subscriptions to a channel or a stream, if they were made before a certain time.

    Attributes:
        condition: the identifiers and the namespace of the connections. Without identifiers, the condition matches all
            connections in the namespace.
        scope: the channel or the stream, in the form of `identity.subscription_scopes`.
        at: the time before which the subscriptions were made, in seconds since 1970 by the session store's clock.
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
        sid: the id of the restored session, which belonged to the former connection.
        successor: the session id of the new connection.
    """

    sid: str
    successor: str


@dataclass(frozen=True, slots=True)
class LoginChange:
    """A message that reports that a login has ended, or that the logins of a user must be checked.

    Attributes:
        condition: a Django session whose login has ended, or a user whose logins must be checked. It has the form of
            `logins.Login.identity`.
    """

    condition: Mapping[str, str]


ControlMessage = Revocation | SubscriptionRevocation | Takeover | LoginChange


def encode_revocation(revocation: Revocation) -> str:
    """Encode a revocation as a control message."""
    return json.dumps({"revoke": dict(revocation.condition), "at": revocation.at, "reconnect": revocation.reconnect})


def encode_subscription_revocation(revocation: SubscriptionRevocation) -> str:
    """Encode a revocation of subscriptions as a control message.

    Servers of older releases ignore the key `subscriptions`, and decode the message as a `Revocation`. So they close
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
    """Encode takeovers as one control message."""
    return json.dumps({"supersede": [(takeover.sid, takeover.successor) for takeover in takeovers]})


def encode_login_change(change: LoginChange) -> str:
    """Encode a login change as a control message."""
    return json.dumps({"login": dict(change.condition)})


def decode(text: str) -> Sequence[ControlMessage]:
    """Return the objects in a control message.

    A message contains one or more takeovers, or one object of another kind. For an unknown kind, the result is empty.

    Raises:
        ValueError, KeyError, TypeError: the message is not valid.
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
    return [Takeover(sid, successor) for sid, successor in message.get("supersede", ())]
