"""The decorator of the HTTP endpoints of runs. It checks the method, user and CSRF token, and sends errors as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from http import HTTPMethod, HTTPStatus
from typing import Any, Final

from django.contrib.auth.decorators import login_not_required
from django.core.handlers.asgi import ASGIRequest
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt

from reliable_cable.concurrency.threads import run_handler
from reliable_cable.http.core import NEVER_CACHE, Refusal, Response
from reliable_cable.http.cors import PREFLIGHT, check_origin_of_cookies, cors_headers, preflight
from reliable_cable.namespaces import use_namespace

from .limits import open_readers
from .outages import Outage, refuse_outages
from .requests import authenticate, check_csrf, csrf_header, scope_of

#: The methods that change nothing.
SAFE: Final = (HTTPMethod.GET, HTTPMethod.HEAD)


def endpoint(
    *methods: str,
    streams: bool = False,
    cors: Mapping[str, str] = PREFLIGHT,
    headers: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate an async function, which is called with the request, the visitor and the parts of the path.

    The view authenticates the user, and sends errors as JSON. Pages of the origins in `CORS_ORIGINS` may use it. It
    never runs in a transaction of `ATOMIC_REQUESTS`, which cannot surround an async view. While the database or the
    store is unavailable, it refuses requests with the status 503.

    Args:
        methods: the methods that the endpoint allows.
        streams: whether the response is a stream, which needs ASGI and is subject to the limit `RUN_MAX_READERS`.
        cors: the headers of the response to a preflight request. `_preflight_headers` adds the name of the CSRF header.
            By default, they allow GET and POST.
        headers: headers of all responses.
    """
    allowed = ", ".join([*methods, HTTPMethod.OPTIONS])
    sentence = f"The method must be {' or '.join(methods)}."

    def decorate(function: Callable[..., Awaitable[HttpResponseBase]]) -> Callable[..., Any]:
        @wraps(function)
        async def view(request: HttpRequest, **parts: str) -> HttpResponseBase:
            scope = scope_of(request)
            own = {"Cache-Control": NEVER_CACHE, **(headers or {}), **cors_headers(scope)}
            if request.method == HTTPMethod.OPTIONS:
                return to_django(preflight(scope, own, _preflight_headers(cors)))
            try:
                with refuse_outages(request):
                    response = await _respond(request, parts)
            except Refusal as refusal:
                response = to_django(refusal.response())
                if isinstance(refusal, Outage):
                    # Django would log the response, too, because its status is 503.
                    response._has_been_logged = True  # type: ignore[attr-defined]
            for name, value in own.items():
                response.headers.setdefault(name, value)
            return response

        async def _respond(request: HttpRequest, parts: dict[str, str]) -> HttpResponseBase:
            if request.method not in methods:
                refusal = JsonResponse({"error": sentence}, status=HTTPStatus.METHOD_NOT_ALLOWED)
                refusal.headers["Allow"] = allowed
                return refusal
            if streams and not isinstance(request, ASGIRequest):
                raise Refusal(
                    HTTPStatus.NOT_IMPLEMENTED,
                    "Answers can be streamed only by an ASGI server, such as daphne or uvicorn. This is WSGI.",
                )
            visitor = await authenticate(request)
            with use_namespace(visitor.namespace):
                if visitor.has_token:
                    pass  # the browser sends no token by itself, so a page of another site cannot use it
                elif request.method not in SAFE:
                    await run_handler(check_csrf, request)
                else:
                    check_origin_of_cookies(visitor.scope)
                if streams:
                    open_readers().check(visitor)
                return await function(request, visitor, **parts)

        for alias in connections:
            transaction.non_atomic_requests(using=alias)(view)
        return csrf_exempt(login_not_required(view))

    return decorate


def _preflight_headers(cors: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers of the response to a preflight request, which also allow the header with the CSRF token."""
    name = "Access-Control-Allow-Headers"
    return {**cors, name: f"{cors[name]}, {csrf_header()}"}


def to_django(response: Response) -> HttpResponse:
    """Return a response as an object of Django."""
    return HttpResponse(response.body, status=response.status, headers=response.headers)
