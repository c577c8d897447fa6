"""Verifies tokens, and finds the users whom they authenticate."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from reliable_cable.concurrency.threads import run_handler
from reliable_cable.conf import HMAC_ALGORITHMS, NAME, PUBLIC_KEY_ALGORITHMS, CableSettings, get_settings
from reliable_cable.exceptions import InvalidToken, TokenExpired
from reliable_cable.identity import reason_against
from reliable_cable.logins import TokenLogin, is_active, user_id
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.signing import accepted_secrets

from .jwks import KeySet, KeysUnavailable
from .sessions import anonymous
from .tokens import IDENTIFIERS_CLAIM, NAMESPACE_CLAIM, import_jwt, secret_of
from .users import find_user

#: The maximum number of characters of a token. A longer token is refused before it is decoded.
MAX_TOKEN_SIZE: Final = 8192

#: The key under which a middleware stores the client's `TokenAuthentication` in the scope. The value is None if the
#: client has sent no token.
SCOPE_KEY: Final = "cable_token"

#: The latest expiry of a token, in seconds since 1970. A later expiry is replaced by this one.
_LATEST: Final = 2**53

Authenticator = Callable[[str, Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class TokenAuthentication:
    """The result of the verification of a token.

    Attributes:
        user: the user whom the token names. It is an anonymous user if the token names no user, or was refused.
        claims: the verified claims. They are empty if an authenticator has accepted a token that is not a JWT.
        identifiers: the identifiers in the token by name, except for the user.
        expires_at: the time at which the connection ends because the token has expired, in seconds since 1970. It
            includes `JWT_LEEWAY`. None means that the token does not expire.
        namespace: the only namespace in which the token is valid. None means that the namespace is not checked, because
            an authenticator has accepted the token.
        refusal: the reason for which the client is refused. None means that the token is valid.
    """

    user: Any = field(default_factory=anonymous)
    claims: Mapping[str, Any] = field(default_factory=dict)
    identifiers: Mapping[str, Any] = field(default_factory=dict)
    expires_at: float | None = None
    namespace: str | None = None
    refusal: DisconnectReason | None = None

    @property
    def login(self) -> TokenLogin | None:
        """The login to check while the connection is open, or None if the user is not a row of the user model."""
        return TokenLogin(user_id(self.user)) if isinstance(self.user, get_user_model()) else None


class _WrongSignature(InvalidToken):
    """The signature of a token does not match the key that was tried."""


class TokenVerifier:
    """A verifier of tokens, with the algorithms, keys and authenticators in the settings.

    Args:
        settings: the settings of this package.

    Raises:
        ImproperlyConfigured: a package that the settings need is not installed, or an authenticator cannot be imported.
    """

    def __init__(self, settings: CableSettings) -> None:
        self.settings = settings
        self._jwt = import_jwt()
        if settings.jwt_jwks and not self._jwt.algorithms.has_crypto:
            raise ImproperlyConfigured(
                f"{NAME}['JWT_JWKS'] needs the Python package cryptography: pip install 'reliable_cable[jwt]'"
            )
        self._keys = KeySet(settings.jwt_jwks) if settings.jwt_jwks else None
        self._authenticators = [_import_authenticator(path) for path in settings.authenticators]

    async def authenticate(self, token: str, scope: Mapping[str, Any]) -> TokenAuthentication:
        """Verify the token of a handshake, and look up the user whom it names.

        Raises:
            InvalidToken: the token is not valid. The message completes the sentence "The token …".
            TokenExpired: the token has expired.
            Exception: an authenticator or the look-up of the user failed, or the keys cannot be read.
        """
        if len(token) > MAX_TOKEN_SIZE:
            raise InvalidToken(f"is longer than {MAX_TOKEN_SIZE} characters")
        if not (token.isascii() and token.isprintable()):
            # An authenticator may look up the token in PostgreSQL, which refuses a query with a NUL.
            raise InvalidToken("has characters that are not printable ASCII")
        for authenticator in self._authenticators:
            user = await run_handler(_ask, authenticator, token, scope)
            if user is not None:
                return self._accepted(user, token)
        claims = await self._verify(token)
        identifiers = _read_identifiers(claims)
        return TokenAuthentication(
            user=await self._find_user(claims, identifiers.pop("user", None)),
            claims=MappingProxyType(claims),
            identifiers=identifiers,
            expires_at=self._expiry(claims),
            namespace=self._namespace(claims),
        )

    def _namespace(self, claims: Mapping[str, Any]) -> str:
        """Return the namespace in which a token is valid, or `""` if the token names none.

        Raises:
            InvalidToken: the claim is neither a string nor null, and the setting `NAMESPACE` is used.
        """
        namespace = claims.get(NAMESPACE_CLAIM)
        if isinstance(namespace, str):
            return namespace
        if namespace is not None and self.settings.namespace is not None:
            raise InvalidToken(f"has a claim {NAMESPACE_CLAIM!r} that is not a string")
        return ""

    async def _find_user(self, claims: Mapping[str, Any], reference: object) -> Any:
        source = IDENTIFIERS_CLAIM
        if reference is None:
            if self.settings.jwt_user_claim is None:
                return anonymous()
            source = self.settings.jwt_user_claim
            reference = claims.get(source)
        if isinstance(reference, bool) or not isinstance(reference, str | int):
            raise InvalidToken(f"has no user in its claim {source!r}")
        return await find_user(reference)

    async def _verify(self, token: str) -> dict[str, Any]:
        try:
            header = self._jwt.get_unverified_header(token)
        except Exception as error:
            raise InvalidToken("is not a JSON Web Token") from error
        algorithm = header.get("alg")
        if algorithm not in self.settings.jwt_algorithms:
            raise InvalidToken("has an algorithm that is not in JWT_ALGORITHMS")
        # The algorithm decides which keys are tried. So a public key is never used as a secret.
        keys: Sequence[Any] = ()
        if algorithm in HMAC_ALGORITHMS:
            secret = secret_of(self.settings)
            keys = [secret] if self.settings.jwt_secret else list(accepted_secrets(secret))
        elif algorithm in PUBLIC_KEY_ALGORITHMS and self._keys is not None:
            keys = [await self._find_key(self._keys, header.get("kid"), algorithm, token)]
        for key in keys[:-1]:
            with suppress(_WrongSignature):
                return self._decode(token, key, algorithm)
        return self._decode(token, keys[-1], algorithm)

    async def _find_key(self, keys: KeySet, key_id: Any, algorithm: str, token: str) -> Any:
        try:
            key = await keys.find(key_id, algorithm)
        except KeysUnavailable:
            self._refuse_if_expired(token)
            raise
        if key is None:
            self._refuse_if_expired(token)
            raise InvalidToken("has a key id for which JWT_JWKS has no key of the token's algorithm")
        return key

    def _refuse_if_expired(self, token: str) -> None:
        """Raise `TokenExpired` if a token with an unknown key has expired, according to its own claim.

        A service removes a key some time after it signed the last token with the key. A client that was offline
        during this time may still have such a token, and must learn that it needs a new one. The claim is not verified,
        but the token is refused in any case.
        """
        options = {"verify_signature": False, "verify_exp": True}
        try:
            self._jwt.decode(token, options=options, leeway=self.settings.jwt_leeway)
        except self._jwt.ExpiredSignatureError as error:
            raise TokenExpired("has expired") from error
        except Exception:  # noqa: S110 - the caller refuses the token
            pass

    def _decode(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = self._jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                leeway=self.settings.jwt_leeway,
                audience=self.settings.jwt_audience or None,
                issuer=self.settings.jwt_issuer or None,
                options={"verify_sub": False, "verify_jti": False},
            )
        except self._jwt.InvalidSignatureError as error:
            raise _WrongSignature("has a wrong signature") from error
        except self._jwt.ExpiredSignatureError as error:
            raise TokenExpired("has expired") from error
        except self._jwt.InvalidAudienceError as error:
            raise InvalidToken("has an audience that is not in JWT_AUDIENCE") from error
        except Exception as error:
            # Claims of a wrong type make PyJWT raise errors of many kinds.
            raise InvalidToken(f"is not valid ({type(error).__name__})") from error
        return claims

    def _accepted(self, user: Any, token: str) -> TokenAuthentication:
        """Return the authentication of a user whom an authenticator has found."""
        if not is_active(user):
            raise InvalidToken("names a user who is not active")
        try:
            # The signature need not be verified here, because the authenticator has accepted the token.
            claims = self._jwt.decode(token, options={"verify_signature": False})
            expiry = self._expiry(claims)
        except Exception:
            return TokenAuthentication(user)  # the token is not a JWT, or its expiry is not a number
        return TokenAuthentication(user, MappingProxyType(claims), expires_at=expiry)

    def _expiry(self, claims: Mapping[str, Any]) -> float | None:
        if "exp" not in claims:
            return None
        # PyJWT uses `int` in the same way. A float cannot represent every whole number above `_LATEST`.
        return min(int(claims["exp"]), _LATEST) + self.settings.jwt_leeway


def _read_identifiers(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identifiers in a token by name. Identifiers that are null are left out."""
    text = claims.get(IDENTIFIERS_CLAIM, "{}")
    try:
        identifiers = json.loads(text, parse_constant=_refuse_constant) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        identifiers = None
    if not isinstance(identifiers, dict):
        raise InvalidToken(f"has a claim {IDENTIFIERS_CLAIM!r} that is not a string with a JSON object")
    for name, value in identifiers.items():
        if not _is_identifier(value):
            raise InvalidToken(f"has the identifier {name!r}, which is not a string, a number or a boolean")
    return {name: value for name, value in identifiers.items() if value is not None}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_identifier(value: object) -> bool:
    if isinstance(value, str):
        # Databases cannot store a string with a NUL or a surrogate.
        return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    return value is None or isinstance(value, int | float)


def _ask(authenticator: Authenticator, token: str, scope: Mapping[str, Any]) -> Any:
    """Return the user whom an authenticator finds, or None.

    Raises:
        TypeError: the authenticator returned another value, such as False. Such a value must not count as a user.
    """
    user = authenticator(token, scope)
    if user is None or getattr(user, "is_anonymous", False) is True:
        return user
    if problem := reason_against("user", user):
        raise TypeError(
            f"{NAME}['AUTHENTICATORS']: {authenticator!r} returned a value of the type {type(user).__name__}; it must "
            f"return a user or None: {problem}."
        )
    return user


def _import_authenticator(path: str) -> Authenticator:
    try:
        found = import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(
            f"{NAME}['AUTHENTICATORS'] has {path!r}, which cannot be imported: {error}."
        ) from error
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise ImproperlyConfigured(f"{NAME}['AUTHENTICATORS'] has {path!r}; it must be a function declared with `def`.")
    authenticator: Authenticator = found
    return authenticator


_verifier: TokenVerifier | None = None


def get_verifier() -> TokenVerifier:
    """Return the verifier for the current settings.

    Raises:
        ImproperlyConfigured: the settings cannot be used, see `TokenVerifier`.
    """
    global _verifier
    settings = get_settings()
    if _verifier is None or _verifier.settings is not settings:
        _verifier = TokenVerifier(settings)
    return _verifier
