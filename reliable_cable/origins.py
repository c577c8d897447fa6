"""Checks the header `Origin` of a handshake, to decide whether a web page may connect (see Protocol: Handshake).

Browsers let every web page open a WebSocket to every host, and send the user's cookies with the handshake. Without this
check, a web page of another site could use the cable as the user who visits that site.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any, Final, NamedTuple, Self

from django.conf import settings
from django.core.exceptions import DisallowedHost, ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.http.request import split_domain_port
from django.utils.http import is_same_domain

logger = logging.getLogger("reliable_cable")

#: The value of `allowed_origins` that allows every origin.
EVERY_ORIGIN: Final = "*"
#: The maximum length of an origin that is cached. A client can send longer ones, which would fill the memory.
MAX_CACHED: Final = 256
#: The minimum time, in seconds, between two logged refusals.
LOG_INTERVAL: Final = 60.0

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
#: The schemes of origins, by schemes of WebSocket URLs. Some clients other than browsers send a WebSocket scheme.
_WEB_SCHEMES: Final = {"ws": "http", "wss": "https"}
#: The schemes of ASGI scopes whose connection uses TLS.
_SECURE_SCHEMES: Final = ("https", "wss")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
#: The hosts that Django allows if `DEBUG` is on and `ALLOWED_HOSTS` is empty.
_LOCAL_HOSTS: Final = (".localhost", "127.0.0.1", "[::1]")


class Origin(NamedTuple):
    """An origin or a pattern of origins, in lower case.

    Args:
        scheme: the scheme. `ws` is replaced by `http`, and `wss` by `https`.
        host: the host. In a pattern, `.example.com` matches this domain and all its subdomains.
        port: the port; `""` if it is the default port of the scheme.
    """

    scheme: str
    host: str
    port: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse the origin in a header or setting. Return None if the string is invalid, or is `null`."""
        scheme, _, rest = text.partition("://")
        scheme = scheme.lower()
        host, port = split_domain_port(rest)
        if not host or not _SCHEME.fullmatch(scheme):
            return None
        scheme = _WEB_SCHEMES.get(scheme, scheme)
        return cls(scheme, host, _without_default(port, scheme))

    @classmethod
    def parse_pattern(cls, text: str) -> Self | None:
        """Parse a pattern in a setting, such as `https://*.example.com`. Return None if it is invalid."""
        pattern = cls.parse(text.replace("://*.", "://", 1))
        return pattern._replace(host=f".{pattern.host}") if pattern and "://*." in text else pattern

    def matches(self, pattern: Origin) -> bool:
        """Return whether this origin matches a pattern."""
        return (self.scheme, self.port) == (pattern.scheme, pattern.port) and is_same_domain(self.host, pattern.host)


_cached_parse = lru_cache(maxsize=1024)(Origin.parse)


def _parse_header(text: str) -> Origin | None:
    """Parse the header `Origin`. Most clients send the same few origins, so short ones are cached."""
    return _cached_parse(text) if len(text) <= MAX_CACHED else Origin.parse(text)


def check_allowed_origins(name: str, allowed: object) -> None:
    """Check a value of `allowed_origins`.

    Args:
        name: the name of the consumer class, for the error message.
        allowed: the value of `allowed_origins`.

    Raises:
        ImproperlyConfigured: the value is not None, `"*"` or a list of origins.
    """
    if allowed is None or allowed == EVERY_ORIGIN:
        return
    if not isinstance(allowed, list | tuple):
        raise ImproperlyConfigured(f"{name}.allowed_origins is {allowed!r}; it must be a list of origins, '*' or None.")
    for text in allowed:
        if not isinstance(text, str) or Origin.parse_pattern(text) is None:
            raise ImproperlyConfigured(
                f"{name}.allowed_origins has {text!r}; it must be an origin such as 'https://example.com', "
                "'https://*.example.com' or 'http://localhost:5173', in ASCII and without a path."
            )


def is_allowed(scope: Mapping[str, Any], allowed: Sequence[str] | None, *, tenants: bool = False) -> bool:
    """Return whether the origin of a handshake is allowed.

    Args:
        scope: the ASGI scope of the handshake.
        allowed: the consumer's `allowed_origins`.
        tenants: whether the hosts in `ALLOWED_HOSTS` belong to several tenants. If they do, they are not allowed as
            origins, because a web page of one tenant must not connect to another tenant. The host of the handshake
            itself is allowed.
    """
    if allowed == EVERY_ORIGIN:
        return True
    headers = _origin_headers(scope)
    if not headers:
        # Browsers send the header with each WebSocket handshake. For HTTP requests without it, see `http.cors`.
        return True
    origin = _parse_header(headers[0]) if len(headers) == 1 else None
    if origin is None:
        return False
    if allowed is not None:
        return _matches_any(origin, allowed)
    return _is_own(origin, scope, tenants=tenants) or _matches_any(origin, settings.CSRF_TRUSTED_ORIGINS)


def listed_origin(scope: Mapping[str, Any], patterns: Sequence[str]) -> str | None:
    """Return the header `Origin` of a request if it matches one of these patterns; None otherwise."""
    headers = _origin_headers(scope)
    origin = _parse_header(headers[0]) if len(headers) == 1 else None
    return headers[0] if origin is not None and _matches_any(origin, patterns) else None


def _matches_any(origin: Origin, patterns: Sequence[str]) -> bool:
    return any(origin.matches(pattern) for pattern in _parse_patterns(tuple(patterns)))


@lru_cache
def _parse_patterns(patterns: tuple[str, ...]) -> list[Origin]:
    parsed = map(Origin.parse_pattern, patterns)
    return [pattern for pattern in parsed if pattern is not None]


def _is_own(origin: Origin, scope: Mapping[str, Any], *, tenants: bool) -> bool:
    """Return whether an origin is the host of the handshake or one of `ALLOWED_HOSTS`."""
    if origin.scheme not in _DEFAULT_PORTS:
        return False
    # An attacker in the network can forge a web page without TLS. Such a page must not use a connection with TLS.
    if origin.scheme == "http" and _is_secure(scope):
        return False
    hosts = settings.ALLOWED_HOSTS or (_LOCAL_HOSTS if settings.DEBUG else ())
    if not tenants and any(is_same_domain(origin.host, pattern) for pattern in hosts if pattern != "*"):
        return True
    try:
        host, port = split_domain_port(_as_request(scope).get_host())
    except DisallowedHost:
        return False
    return (origin.host, origin.port) == (host, _without_default(port, origin.scheme))


def _is_secure(scope: Mapping[str, Any]) -> bool:
    """Return whether the client uses TLS, by the scheme or by the header that `SECURE_PROXY_SSL_HEADER` names."""
    if settings.SECURE_PROXY_SSL_HEADER is None:  # making a request object is slow, and only that setting needs it
        return scope.get("scheme") in _SECURE_SCHEMES
    return _as_request(scope).is_secure()


def _as_request(scope: Mapping[str, Any]) -> ASGIRequest:
    """Return a handshake as a Django request, which applies Django's settings for hosts and for proxies.

    The query string and the content type are left out, because Django raises errors for some values of them.
    """
    scheme = "https" if scope.get("scheme") in _SECURE_SCHEMES else "http"
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-type"]
    simple = {**scope, "method": "GET", "scheme": scheme, "query_string": b"", "headers": headers}
    return ASGIRequest(simple, BytesIO())


def _without_default(port: str, scheme: str) -> str:
    return "" if port == _DEFAULT_PORTS.get(scheme) else port


def _origin_headers(scope: Mapping[str, Any]) -> list[str]:
    return [value.decode("latin1") for name, value in scope.get("headers", ()) if name.lower() == b"origin"]


_logged_at = -math.inf

#: The sentence of a log message that says which settings allow an origin to open a WebSocket.
_REMEDY: Final = (
    "Allowed are this host, ALLOWED_HOSTS (unless NAMESPACE is set) and CSRF_TRUSTED_ORIGINS, or `allowed_origins` of "
    "the consumer."
)


def log_refusal(scope: Mapping[str, Any], what: str = "A WebSocket was refused", remedy: str = _REMEDY) -> None:
    """Log that the origin of a request was refused. Further refusals within `LOG_INTERVAL` are not logged.

    Args:
        scope: the ASGI scope of the request.
        what: a clause that says what was refused.
        remedy: sentences that say which settings allow an origin.
    """
    global _logged_at
    now = time.monotonic()
    if now - _logged_at < LOG_INTERVAL:
        return
    _logged_at = now
    origin, host = origin_and_host(scope)
    logger.warning(
        "%s, because its Origin is %r and its Host is %r. %s Other refusals in the next minute are not logged.",
        what,
        origin,
        host,
        remedy,
    )


def origin_and_host(scope: Mapping[str, Any]) -> tuple[str, str]:
    """Return the headers `Origin` and `Host` of a request."""
    host = next((value for name, value in scope.get("headers", ()) if name.lower() == b"host"), b"")
    return ", ".join(_origin_headers(scope)), host.decode("latin1")
