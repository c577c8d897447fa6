"""Signed stream names and derived keys (see Protocol: Signed streams)."""

import base64
import binascii
import hmac
import json
from collections.abc import Iterator
from hashlib import sha256

from django.conf import settings as django_settings

from .conf import NAMESPACE_SEPARATOR, derived_secret, get_settings
from .exceptions import InvalidStreamName
from .namespaces import current_namespace, qualify

_SEPARATOR = "--"


def signed_stream_name(name: str) -> str:
    """Return a stream's name with a signature. A client that has it may subscribe to the stream.

    The signature does not expire, and anybody can use it. So put it only into pages for users who may read the stream.
    It is valid for connections of the current namespace.

    Raises:
        InvalidStreamName: the name is not a string, is empty, cannot be encoded as UTF-8, or contains the character
            that separates namespaces from names.
    """
    if not isinstance(name, str) or not name:
        raise InvalidStreamName(f"The stream's name is {name!r}; it must be a non-empty string.")
    if NAMESPACE_SEPARATOR in name:
        # With this character, a name without a namespace would be a name in another namespace.
        raise InvalidStreamName(f"The stream's name {name!r} contains {NAMESPACE_SEPARATOR!r}, which is not allowed.")
    try:
        text = json.dumps(qualify(current_namespace(), name), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidStreamName(f"The stream's name {name!r} contains surrogates, which are not allowed.") from None
    encoded = base64.b64encode(text).decode()
    return f"{encoded}{_SEPARATOR}{_hmac(get_settings().streams_secret, encoded)}"


def verify_stream_name(signed: str) -> str | None:
    """Return the stream's name, with its namespace and without the signature, or None if the signature is wrong.

    If the streams secret is derived from `SECRET_KEY`, signatures made with one of `SECRET_KEY_FALLBACKS` are accepted,
    too.
    """
    encoded, separator, digest = signed.rpartition(_SEPARATOR)
    # compare_digest accepts ASCII text only.
    if not separator or not signed.isascii():
        return None
    secret = get_settings().streams_secret
    if not any(hmac.compare_digest(_hmac(each, encoded), digest) for each in accepted_secrets(secret)):
        return None
    try:
        name = json.loads(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return name if isinstance(name, str) and name else None


def derived_key(purpose: str) -> str:
    """Return the key for a purpose. It is derived from the application secret.

    Args:
        purpose: "broadcast-cable", "api-cable" or "rpc-cable".
    """
    return _hmac(get_settings().secret, purpose)


def accepted_keys(purpose: str, key: str) -> Iterator[str]:
    """Yield the keys that are accepted for a purpose. None of them is empty.

    Args:
        purpose: as for `derived_key`.
        key: the key in the settings. It is the only accepted one, unless it is `""`. Then the accepted keys are derived
            from the application secret.
    """
    if key:
        yield key
        return
    for secret in accepted_secrets(get_settings().secret):
        yield _hmac(secret, purpose)


def accepted_secrets(secret: str) -> Iterator[str]:
    """Yield a secret. If it is derived from `SECRET_KEY`, yield those derived from `SECRET_KEY_FALLBACKS`, too."""
    yield secret
    if secret == derived_secret(django_settings.SECRET_KEY):
        for key in django_settings.SECRET_KEY_FALLBACKS:
            if key:  # anybody can derive the secret of an empty key
                yield derived_secret(key)


def _hmac(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), sha256).hexdigest()
