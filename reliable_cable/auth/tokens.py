"""Makes JSON Web Tokens in AnyCable's format, and finds the token in a handshake. See Authentication: Tokens."""

import json
import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import parse_qs

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured

from reliable_cable.conf import HMAC_ALGORITHMS, NAME, CableSettings, get_settings
from reliable_cable.exceptions import InvalidIdentifier
from reliable_cable.identity import identify, is_row, reason_against, root_label
from reliable_cable.namespaces import current_namespace

#: The prefix of a subprotocol that contains a token. A client offers this subprotocol, but no server selects it.
SUBPROTOCOL_PREFIX: Final = "anycable-token."
#: The name of the handshake's header that may contain a token.
HEADER: Final = b"x-jid"
#: The name of the query parameter that may contain a token.
PARAMETER: Final = "jid"

#: The name of the claim for the identifiers. Its value is a JSON text, as in AnyCable.
IDENTIFIERS_CLAIM: Final = "ext"
#: The name of the claim for the namespace (see the setting `NAMESPACE`). A token is valid only in its namespace.
NAMESPACE_CLAIM: Final = "namespace"

#: The minimum size, in bytes, of a secret that signs tokens with HS256 (RFC 7518, section 3.2).
MIN_SECRET_SIZE: Final = 32

#: How long, in seconds, a token is valid by default.
DEFAULT_TTL: Final = 3600.0


def find_token(scope: Mapping[str, Any]) -> str | None:
    """Return the token of a handshake, or None if the handshake has no token.

    The subprotocols are searched first, then the header, then the query.
    """
    for name in scope.get("subprotocols") or ():
        if name.startswith(SUBPROTOCOL_PREFIX) and name != SUBPROTOCOL_PREFIX:
            return str(name.removeprefix(SUBPROTOCOL_PREFIX))
    for name, value in scope.get("headers", ()):
        if name.lower() == HEADER and value:
            return str(value.decode("latin1"))
    query = scope.get("query_string") or b""
    if PARAMETER.encode() not in query:
        return None
    found: str | None = parse_qs(query.decode("latin1")).get(PARAMETER, [None])[0]
    return found


def cable_token(identifiers: Any, ttl: float | timedelta = DEFAULT_TTL) -> str:
    """Return a token for a client without a Django session, such as a mobile app: `cable_token(user)`.

    The token is signed with `JWT_SECRET`. If `NAMESPACE` is set, the token is valid only in the current namespace.

    Args:
        identifiers: the user, or a dict of values by the names in `identified_by`, such as `{"user": user, "room": 7}`.
            A value is the user object, a string, a whole number, True or False.
        ttl: how long the token is valid, in seconds or as a timedelta.

    Raises:
        ImproperlyConfigured: PyJWT is not installed, or `JWT_ALGORITHMS` has no algorithm that uses a secret.
        InvalidIdentifier: there is no identifier, or a value cannot be in a token, for example an anonymous user.
        ValueError: `ttl` is not greater than 0, or is infinite.
    """
    settings = get_settings()
    algorithm = next((name for name in settings.jwt_algorithms if name in HMAC_ALGORITHMS), None)
    if algorithm is None:
        raise ImproperlyConfigured(
            f"cable_token() signs with a secret, but {NAME}['JWT_ALGORITHMS'] is {list(settings.jwt_algorithms)!r}. "
            "Add 'HS256', or get tokens from the service whose public keys are in JWT_JWKS."
        )
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if not 0 < seconds < math.inf:
        raise ValueError(f"cable_token(ttl={ttl!r}): the time must be greater than 0, and finite.")
    texts = _encode_identifiers(identifiers if isinstance(identifiers, Mapping) else {"user": identifiers})
    claims: dict[str, Any] = {IDENTIFIERS_CLAIM: texts, "exp": int(time.time() + seconds)}
    if namespace := current_namespace():
        claims[NAMESPACE_CLAIM] = namespace
    return str(import_jwt().encode(claims, secret_of(settings), algorithm=algorithm))


def secret_of(settings: CableSettings) -> str:
    """Return the secret that signs tokens: `JWT_SECRET`, which is `SECRET` by default."""
    return settings.jwt_secret or settings.secret


def import_jwt() -> Any:
    """Import and return the package PyJWT, which is an optional dependency.

    Raises:
        ImproperlyConfigured: PyJWT is not installed.
    """
    try:
        import jwt
    except ImportError as error:
        raise ImproperlyConfigured("Tokens need the Python package PyJWT: pip install 'reliable_cable[jwt]'") from error
    return jwt


def _encode_identifiers(identifiers: Mapping[str, Any]) -> str:
    if not identifiers:
        raise InvalidIdentifier("cable_token() needs at least one identifier: cable_token(user).")
    encoded = {name: _encode(name, value) for name, value in identifiers.items()}
    # The names are sorted as in `identity.identifiers_text`. anycable-go compares the texts, so equal identifiers must
    # have equal texts.
    return json.dumps(encoded, sort_keys=True, separators=(",", ":"))


def _encode(name: str, value: Any) -> str | int | bool:
    problem = reason_against(name, value)
    if not problem and name == "user":
        model = get_user_model()
        if is_row(value) and root_label(value._meta) == root_label(model._meta):
            return identify(value)
        problem = f"it must be a user object ({model._meta.label})"
    if not problem and isinstance(value, str | int):
        return value
    raise InvalidIdentifier(
        f"cable_token() got a value of the type {type(value).__name__} for {name!r}: "
        f"{problem or 'it must be a string, a whole number, True or False'}."
    )
