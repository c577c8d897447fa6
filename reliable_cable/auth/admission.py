"""Sets the user, the token and the identifiers of a consumer, before its method `connect` runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from reliable_cable.client_log import handshake_log
from reliable_cable.conf import get_settings
from reliable_cable.logins import AnyLogin, find_login
from reliable_cable.protocol.constants import DisconnectReason

from .sessions import anonymous
from .verification import SCOPE_KEY, TokenAuthentication


class Consumer(Protocol):
    """The attributes of `CableConsumer` that this module reads or sets."""

    #: The names of the attributes that identify the owner of the connection.
    identified_by: ClassVar[tuple[str, ...]]
    scope: dict[str, Any]
    user: Any
    #: The verified claims of the token. None means that the client has sent no token.
    token: Mapping[str, Any] | None

    @property
    def namespace(self) -> str:
        """The namespace of the connection, or `""` if it has none."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The result of the authentication of a client.

    Attributes:
        login: the login of the client, which is checked repeatedly while the connection is open. None means that there
            is nothing to check.
        expires_at: the time at which the token expires, in seconds since 1970. None means that there is no token, or
            that it does not expire.
        refusal: the reason for which the client is refused. None means that the client may connect.
    """

    login: AnyLogin | None = None
    expires_at: float | None = None
    refusal: DisconnectReason | None = None


def admit(consumer: Consumer) -> Admission:
    """Set the user, token and identifiers of a consumer from its scope. Return the result of the authentication."""
    scope = consumer.scope
    found: TokenAuthentication | None = scope.get(SCOPE_KEY)
    if found is not None:
        return _admit_by_token(consumer, found)
    consumer.user = scope.get("user")
    if consumer.user is None and SCOPE_KEY in scope:
        # `TokenAuthMiddleware` has found no token, and no other middleware has set a user.
        consumer.user = anonymous()
    if not get_settings().jwt_required:
        return Admission(find_login(scope))
    handshake_log.info("A client was refused, because it sent no token.")
    return Admission(refusal=DisconnectReason.UNAUTHORIZED)


def _admit_by_token(consumer: Consumer, found: TokenAuthentication) -> Admission:
    consumer.user, consumer.token = found.user, found.claims
    for name in consumer.identified_by:
        if name in found.identifiers:
            setattr(consumer, name, found.identifiers[name])
    refusal = found.refusal
    if (
        refusal is None
        and get_settings().namespace is not None
        and found.namespace is not None
        and found.namespace != consumer.namespace
    ):
        handshake_log.warning("A client was refused, because its token is for another namespace.")
        refusal = DisconnectReason.UNAUTHORIZED
    return Admission(found.login, found.expires_at, refusal)
