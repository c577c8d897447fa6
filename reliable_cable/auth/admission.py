"""What a consumer takes over from the authentication of its client, before `connect` runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reliable_cable.client_log import handshake_log
from reliable_cable.conf import get_settings
from reliable_cable.logins import AnyLogin, find_login
from reliable_cable.protocol.constants import DisconnectReason

from .sessions import anonymous
from .verification import SCOPE_KEY, TokenAuthentication


@dataclass(frozen=True, slots=True)
class Admission:
    """Who a client is, according to its session or its token.

    Attributes:
        user: the user, or None if no middleware has authenticated the client.
        login: the login whose validity is checked during the connection, or None.
        token: the verified claims of the token; None: the client has sent no token.
        identifiers: the identifiers in the token, by name, without the user.
        expires_at: when the token expires, in seconds since 1970, or None.
        refusal: why the client is refused, or None.
    """

    user: Any
    login: AnyLogin | None = None
    token: Mapping[str, Any] | None = None
    identifiers: Mapping[str, Any] = field(default_factory=dict)
    expires_at: float | None = None
    refusal: DisconnectReason | None = None


def admit(scope: Mapping[str, Any], namespace: str) -> Admission:
    """Return who a client is.

    Args:
        scope: the scope, from the authentication middleware.
        namespace: the namespace of the connection, or `""`.
    """
    found: TokenAuthentication | None = scope.get(SCOPE_KEY)
    user = scope.get("user")
    settings = get_settings()
    if found is None:
        refusal = None
        if settings.jwt_required:
            handshake_log.info("A client was refused, because it sent no token.")
            refusal = DisconnectReason.UNAUTHORIZED
        if user is None and SCOPE_KEY in scope:
            user = anonymous()  # a middleware has looked for a token, and no other middleware has set a user
        return Admission(user, find_login(scope), refusal=refusal)
    refusal = found.refusal
    if refusal is None and settings.namespace is not None and found.namespace not in (None, namespace):
        handshake_log.warning("A client was refused, because its token is for another namespace.")
        refusal = DisconnectReason.UNAUTHORIZED
    return Admission(found.user, found.login, found.claims, found.identifiers, found.expires_at, refusal)
