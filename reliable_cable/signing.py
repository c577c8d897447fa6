"""Signed stream names and derived keys (PROTOCOL.md, Streams, tokens and keys)."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Iterator
from hashlib import sha256

from django.conf import settings as django_settings

from .conf import derived_secret, get_settings
from .exceptions import InvalidStreamName

_SEPARATOR = "--"


def signed_stream_name(name: str) -> str:
    """Return what a page hands to the client, so that it may subscribe to a stream by name.

    The signature does not expire, and is good for everybody: give it only to whom the stream is meant for.

    Raises:
        InvalidStreamName: the name is not a non-empty string that UTF-8 can carry.
    """
    if not isinstance(name, str) or not name:
        raise InvalidStreamName(f"A stream's name is a non-empty string, not {name!r}.")
    try:
        text = json.dumps(name, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidStreamName(f"{name!r} is not Unicode text.") from None
    encoded = base64.b64encode(text).decode()
    return f"{encoded}{_SEPARATOR}{_hmac(get_settings().streams_secret, encoded)}"


def verify_stream_name(signed: str) -> str | None:
    """Return the name that was signed, or None if the signature is not ours.

    Where the streams secret is derived from `SECRET_KEY`, names signed with one of `SECRET_KEY_FALLBACKS` are good too.
    """
    encoded, separator, digest = signed.rpartition(_SEPARATOR)
    # compare_digest takes text only if it is ASCII.
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
    """Return the key for a purpose, derived from the application secret.

    Args:
        purpose: "broadcast-cable", "api-cable" or "rpc-cable".
    """
    return _hmac(get_settings().secret, purpose)


def accepted_keys(purpose: str, key: str) -> Iterator[str]:
    """Yield the keys that open what is for a purpose; none is empty.

    Args:
        purpose: as for `derived_key`.
        key: the one in the settings, which then is the only one; `""`: those derived from the application secret.
    """
    if key:
        yield key
        return
    for secret in accepted_secrets(get_settings().secret):
        yield _hmac(secret, purpose)


def accepted_secrets(secret: str) -> Iterator[str]:
    """Yield a secret from the settings, and the former ones, if `SECRET_KEY` and so its fallbacks made it."""
    yield secret
    if secret == derived_secret(django_settings.SECRET_KEY):
        for key in django_settings.SECRET_KEY_FALLBACKS:
            if key:  # what an empty one stands for is known to everybody
                yield derived_secret(key)


def _hmac(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), sha256).hexdigest()
