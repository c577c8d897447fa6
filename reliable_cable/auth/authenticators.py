"""Functions that verify the tokens of other packages. To use one, list its path in the setting `AUTHENTICATORS`."""

from collections.abc import Mapping
from typing import Any

from reliable_cable.exceptions import InvalidToken, TokenExpired


def simplejwt(token: str, scope: Mapping[str, Any]) -> Any:
    """Return the user whom an access token of djangorestframework-simplejwt names. The setting `SIMPLE_JWT` applies.

    Args:
        token: the token that the client sent.
        scope: the scope of the handshake, which is not used.

    Returns:
        The user. None if the token cannot be verified with the key of djangorestframework-simplejwt.

    Raises:
        TokenExpired: the token has expired.
        InvalidToken: the user does not exist or is not active, or the token is not an access token.
    """
    from rest_framework_simplejwt import exceptions
    from rest_framework_simplejwt.authentication import JWTAuthentication
    from rest_framework_simplejwt.settings import api_settings
    from rest_framework_simplejwt.state import token_backend

    try:
        token_backend.decode(token)  # type: ignore[arg-type]  # `decode` takes a string, despite its annotation
    except exceptions.TokenBackendExpiredToken as error:
        raise TokenExpired("has expired") from error
    except exceptions.TokenBackendError:
        return None
    authentication = JWTAuthentication()
    try:
        return authentication.get_user(authentication.get_validated_token(token.encode()))
    except exceptions.AuthenticationFailed as error:
        kinds = ", ".join(each.token_type or "" for each in api_settings.AUTH_TOKEN_CLASSES)
        raise InvalidToken(f"is not a token of the type {kinds}, or its user may not log in") from error
