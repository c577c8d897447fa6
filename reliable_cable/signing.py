"""Signs stream names, and derives keys from the secrets in the settings (see Protocol: Signed streams)."""

import base64
import binascii
import hmac
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from django.conf import settings as django_settings

from .conf import NAMESPACE_SEPARATOR, derived_secret, get_settings
from .exceptions import InvalidOption, InvalidStreamName
from .namespaces import current_namespace, qualify
from .protocol.positions import PagePosition

_SEPARATOR = "--"


def signed_stream_name(name: str, *, at: PagePosition | None = None) -> str:
    """Return a stream's name with a signature. A client that has the signed name may subscribe to the stream.

    The signature does not expire, and is not bound to a user. So put it only into web pages for users who may read the
    stream. The signed name is valid only for connections in the current namespace.

    Args:
        name: the stream's name.
        at: the stream's position. A view must read it with `position(name)` before it reads the data of the web page. A
            client that subscribes with the signed name first receives the messages after this position. AnyCable's own
            servers do not support signed names with a position.

    Raises:
        InvalidOption: `at` is not a position of this stream.
        InvalidStreamName: the name is not a string, is empty, cannot be encoded as UTF-8, or contains the character
            that separates namespaces from names.
    """
    if not isinstance(name, str) or not name:
        raise InvalidStreamName(f"The stream's name is {name!r}; it must be a non-empty string.")
    if NAMESPACE_SEPARATOR in name:
        # With this character, the name could be that of a stream in another namespace.
        raise InvalidStreamName(f"The stream's name {name!r} contains {NAMESPACE_SEPARATOR!r}, which is not allowed.")
    qualified = qualify(current_namespace(), name)
    if at is not None and (type(at) is not PagePosition or at.stream != qualified):
        raise InvalidOption(f"{at!r:.200} is not a position that position({name!r}) has returned.")
    try:
        text = json.dumps(qualified if at is None else [qualified, str(at)], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidStreamName(f"The stream's name {name!r} contains surrogates, which are not allowed.") from None
    encoded = base64.b64encode(text).decode()
    return f"{encoded}{_SEPARATOR}{_hmac(get_settings().streams_secret, encoded)}"


def verify_stream_name(signed: str) -> str | None:
    """Return the name in a signed stream name, with its namespace; None if the signature or content is invalid."""
    found = verify_signed_stream(signed)
    return None if found is None else found[0]


def verify_signed_stream(signed: str) -> tuple[str, PagePosition | None] | None:
    """Return the name and the position in a signed stream name; None if the signature or content is invalid.

    The name contains the namespace. The position is None if the name was signed without a position.

    If the streams secret is derived from `SECRET_KEY`, signatures by one of `SECRET_KEY_FALLBACKS` are valid, too.
    """
    encoded, separator, digest = signed.rpartition(_SEPARATOR)
    # compare_digest accepts only ASCII text.
    if not separator or not signed.isascii():
        return None
    secret = get_settings().streams_secret
    if not any(hmac.compare_digest(_hmac(each, encoded), digest) for each in accepted_secrets(secret)):
        return None
    try:
        content: Any = json.loads(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    match content:
        case str(name) if name:
            return name, None
        case [str(name), str(at)] if position := PagePosition.parse(at, name):
            return name, position
    return None


def derived_key(purpose: str) -> str:
    """Derive the key for a purpose from the application secret.

    Args:
        purpose: "broadcast-cable", "api-cable" or "rpc-cable".
    """
    return _hmac(get_settings().secret, purpose)


def accepted_keys(purpose: str, key: str) -> Iterator[str]:
    """Yield the keys that are accepted for a purpose. No key is empty.

    Args:
        purpose: as for `derived_key`.
        key: the key in the settings. If it is set, no other key is accepted. If it is `""`, the accepted keys are
            derived from the application secret.
    """
    if key:
        yield key
        return
    for secret in accepted_secrets(get_settings().secret):
        yield _hmac(secret, purpose)


def accepted_secrets(secret: str) -> Iterator[str]:
    """Yield the given secret. If it is derived from `SECRET_KEY`, also yield the secrets for `SECRET_KEY_FALLBACKS`."""
    yield secret
    if secret == derived_secret(django_settings.SECRET_KEY):
        for key in django_settings.SECRET_KEY_FALLBACKS:
            if key:  # everyone can derive the secret for an empty key
                yield derived_secret(key)


def _hmac(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), sha256).hexdigest()
