"""Checks whether the setting `CORS_ORIGINS` allows a web page of another origin to read responses."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from django.conf import settings

from reliable_cable.conf import get_settings
from reliable_cable.origins import EVERY_ORIGIN, is_allowed, listed_origin, log_refusal, origin_and_host
from reliable_cable.protocol.constants import WRONG_ORIGIN

from .core import Refusal, Response

#: The headers of the response to a preflight request of a page that may read responses.
PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Cache-Control, Content-Type, Last-Event-ID, X-JID",
    "Access-Control-Max-Age": "600",
}
#: The values of `Sec-Fetch-Site` in requests that a web page of another origin has caused.
_OTHER_SITES: Final = (b"cross-site", b"same-site")


def cors_headers(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the CORS headers of a response. A web page can read the response if `CORS_ORIGINS` allows its origin.

    If the origin is not allowed, the result is empty or has only the header `Vary`.
    """
    allowed = get_settings().cors_origins
    if not allowed:
        return {}
    if EVERY_ORIGIN in allowed:
        return {"Access-Control-Allow-Origin": EVERY_ORIGIN}
    origin = listed_origin(scope, allowed)
    if origin is None:
        return {"Vary": "Origin"}
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true", "Vary": "Origin"}


def preflight(scope: Mapping[str, Any], headers: Mapping[str, str], allowed: Mapping[str, str] = PREFLIGHT) -> Response:
    """Return the response to a preflight request, in which a browser asks whether it may send the actual request.

    Args:
        scope: the scope of the request.
        headers: the result of `cors_headers`.
        allowed: the headers that say which methods and headers the page may use.
    """
    may_read = _may_read(headers)
    if not may_read:
        _log(scope, _problems(scope, headers))
    return Response(HTTPStatus.NO_CONTENT, headers={**headers, **(allowed if may_read else {})})


def _may_read(headers: Mapping[str, str]) -> bool:
    return "Access-Control-Allow-Origin" in headers


def without_origin(scope: Mapping[str, Any], headers: Mapping[str, str]) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers of a request, without `Origin` if the consumer need not check the origin.

    The consumer checks the origin of a request that has the header. Without this check, a web page of another site
    could use the cookies of its visitor. A request without cookies needs no such check if the web page may read the
    response.

    Args:
        scope: the scope of the request.
        headers: the result of `cors_headers`.
    """
    if _has(scope, b"cookie") or not _may_read(headers):
        return list(scope["headers"])
    return [header for header in scope["headers"] if header[0] != b"origin"]


def check_site(scope: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    """Check a request, if the browser says that a web page of another origin has caused it.

    Args:
        scope: the scope of the request.
        headers: the result of `cors_headers`.

    Raises:
        Refusal: the request has the cookies of the page's visitor, but no `Origin`, like a request for an image. The
            page could not read the response, but a subscription could make the visitor a member of a stream.
    """
    if dict(scope["headers"]).get(b"sec-fetch-site") not in _OTHER_SITES:
        return
    if _has(scope, b"origin"):
        # This is logged only in development. In production, a proxy may add the headers that let the page read the
        # response.
        if settings.DEBUG and not _may_read(headers):
            log_refusal(scope, f"A page cannot read {scope['path']!r}", _problems(scope, headers))
    elif _has(scope, b"cookie"):
        problem = "It has cookies and no Origin. EventSource and fetch() send one, which CORS_ORIGINS can allow."
        raise _refusal(scope, "A request from a page of another site was refused", problem)


def check_origin_of_cookies(scope: Mapping[str, Any]) -> None:
    """Check the origin of a request that changes nothing. A request without cookies needs no check.

    Raises:
        Refusal: the request has cookies, and comes from a page whose origin may not use them. `CORS_ORIGINS` may
            nevertheless let the page read responses.
    """
    if _has(scope, b"cookie") and not is_allowed(scope, None, tenants=get_settings().namespace is not None):
        problem = "Requests with cookies need the origin in CSRF_TRUSTED_ORIGINS. Or send a token instead of cookies."
        raise _refusal(scope, "A request from a page of this origin was refused", problem)


def refuse_origin(scope: Mapping[str, Any], headers: Mapping[str, str]) -> Refusal:
    """Log that a request is refused because of its origin. Return the error for the response.

    Args:
        scope: the scope of the request.
        headers: the result of `cors_headers`.
    """
    return _refusal(scope, "A request from a page of this origin was refused", _problems(scope, headers))


def _refusal(scope: Mapping[str, Any], error: str, problem: str) -> Refusal:
    _log(scope, problem)
    if settings.DEBUG:
        origin, host = origin_and_host(scope)
        error += f": its Origin is {origin!r}, its Host is {host!r}. {problem}"
    return Refusal(HTTPStatus.FORBIDDEN, error, reason=WRONG_ORIGIN)


def _log(scope: Mapping[str, Any], problem: str) -> None:
    log_refusal(scope, f"A request for {scope['path']!r} was refused", problem)


def _problems(scope: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """Return the problems with the origin of a request, and the settings that can allow it, as a text."""
    problems = []
    if not _may_read(headers):
        problems.append(
            "RELIABLE_CABLE['CORS_ORIGINS'] does not have this origin, so its pages may not read responses."
        )
    if _has(scope, b"cookie"):
        problems.append(
            "With cookies, the origin must also be allowed to open a WebSocket: by CSRF_TRUSTED_ORIGINS, or by "
            "`allowed_origins` of the consumer."
        )
    return " ".join(problems)


def _has(scope: Mapping[str, Any], header: bytes) -> bool:
    return any(name == header for name, _ in scope["headers"])
