"""Decides by the setting `CORS_ORIGINS` which web pages of other origins may read server-sent events."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from reliable_cable.conf import get_settings
from reliable_cable.origins import EVERY_ORIGIN, listed_origin

from .core import Response

_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Cache-Control, Content-Type, Last-Event-ID, X-JID",
    "Access-Control-Max-Age": "600",
}
#: The values of `Sec-Fetch-Site` in requests that a web page of another origin has caused.
_OTHER_SITES: Final = (b"cross-site", b"same-site")


def cors_headers(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that let a web page read the response, if `CORS_ORIGINS` allows the origin of the page."""
    allowed = get_settings().cors_origins
    if not allowed:
        return {}
    if EVERY_ORIGIN in allowed:
        return {"Access-Control-Allow-Origin": EVERY_ORIGIN}
    origin = listed_origin(scope, allowed)
    if origin is None:
        return {"Vary": "Origin"}
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true", "Vary": "Origin"}


def preflight(headers: Mapping[str, str]) -> Response:
    """Return the response to a preflight request, in which a browser asks whether it may send the actual request.

    Args:
        headers: the result of `cors_headers`.
    """
    may_read = "Access-Control-Allow-Origin" in headers
    return Response(HTTPStatus.NO_CONTENT, headers={**headers, **(_PREFLIGHT if may_read else {})})


def without_origin(scope: Mapping[str, Any], headers: Mapping[str, str]) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers of a request, without `Origin` if the consumer need not check the origin.

    The consumer checks the origin, because a web page of another site could use the cookies of its visitor. A request
    without cookies needs no such check if the web page may read the response.

    Args:
        scope: the scope of the request.
        headers: the result of `cors_headers`.
    """
    names = {name for name, _ in scope["headers"]}
    if b"cookie" in names or "Access-Control-Allow-Origin" not in headers:
        return list(scope["headers"])
    return [header for header in scope["headers"] if header[0] != b"origin"]


def is_forged(scope: Mapping[str, Any]) -> bool:
    """Return whether a web page of another site has caused the request, with the cookies of its visitor.

    Browsers send no `Origin` when they load an image, for example, so the consumer cannot check it. The web page could
    not read the response, but the visitor could become a member of a stream.
    """
    found = dict(scope["headers"])
    return b"cookie" in found and b"origin" not in found and found.get(b"sec-fetch-site") in _OTHER_SITES
