"""The decorator of the HTTP endpoints of runs: methods, users, CSRF tokens, and errors as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from http import HTTPMethod, HTTPStatus
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.handlers.asgi import ASGIRequest
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt

from reliable_cable.concurrency.threads import run_handler
from reliable_cable.http.core import Refusal
from reliable_cable.namespaces import use_namespace

from .requests import authenticate, check_csrf


def endpoint(method: str, *, streams: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate an async function, which is called with the request, the visitor and the parts of the path.

    The view authenticates the user, and sends errors as JSON. It never runs in a transaction of `ATOMIC_REQUESTS`,
    which cannot surround an async view.

    Args:
        method: the method that the endpoint allows.
        streams: whether the response is a stream, which needs ASGI.
    """

    def decorate(function: Callable[..., Awaitable[HttpResponseBase]]) -> Callable[..., Any]:
        @wraps(function)
        async def view(request: HttpRequest, **parts: str) -> HttpResponseBase:
            try:
                response = await _respond(request, parts)
            except Refusal as refusal:
                refused = refusal.response()
                response = HttpResponse(refused.body, status=refused.status, headers=refused.headers)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        async def _respond(request: HttpRequest, parts: dict[str, str]) -> HttpResponseBase:
            if request.method != method:
                refusal = JsonResponse({"error": f"The method must be {method}."}, status=HTTPStatus.METHOD_NOT_ALLOWED)
                refusal.headers["Allow"] = method
                return refusal
            if streams and not isinstance(request, ASGIRequest):
                raise Refusal(
                    HTTPStatus.NOT_IMPLEMENTED,
                    "Answers can be streamed only by an ASGI server, such as daphne or uvicorn. This is WSGI.",
                )
            visitor = await authenticate(request)
            with use_namespace(visitor.namespace):
                if method == HTTPMethod.POST and not visitor.has_token:
                    await run_handler(check_csrf, request)
                return await function(request, visitor, **parts)

        for alias in connections:
            transaction.non_atomic_requests(using=alias)(view)
        return csrf_exempt(login_not_required(view))

    return decorate
