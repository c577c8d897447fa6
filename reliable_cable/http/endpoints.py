"""What the endpoints share: their key, their errors as JSON, and bodies that are read up to a limit."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt

from reliable_cable.conf import get_settings
from reliable_cable.signing import accepted_keys

View = Callable[..., HttpResponse]

#: A body may have this many times the bytes of one payload: it may be a batch, and quoting a JSON text lengthens it.
BODY_FACTOR = 8


class Refusal(Exception):
    """A request is answered by an error.

    Args:
        status: of the answer.
        message: tells what was wrong and what is allowed.
        details: more of the answer.
    """

    def __init__(self, status: HTTPStatus, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.details = details

    def response(self) -> HttpResponse:
        """Return the answer."""
        response = JsonResponse({"error": str(self), **self.details}, status=self.status)
        if self.status == HTTPStatus.UNAUTHORIZED:
            response["WWW-Authenticate"] = "Bearer"
        return response


def endpoint(purpose: str, setting: str) -> Callable[[View], View]:
    """Make a view that only who has the key can use, and that answers a `Refusal` with its JSON.

    The view is sync, so that Django runs it in a thread under ASGI. It is never inside a transaction of
    `ATOMIC_REQUESTS`: a broadcast would wait for the commit, and the answer would not know of it.

    Args:
        purpose: what the key is derived for, where the settings have none.
        setting: the key's, in lower case.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            try:
                _check_key(request, purpose, setting)
                return view(request, *args, **kwargs)
            except Refusal as refusal:
                return refusal.response()

        for alias in connections:
            transaction.non_atomic_requests(using=alias)(guarded)
        return never_cache(csrf_exempt(login_not_required(guarded)))

    return decorate


def _check_key(request: HttpRequest, purpose: str, setting: str) -> None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    # Headers are given as Latin-1, whatever the bytes mean.
    given = token.strip().encode("latin-1", "replace")
    accepted = accepted_keys(purpose, getattr(get_settings(), setting))
    # Every key is compared, so that the time does not tell which one was right.
    if not sum(hmac.compare_digest(given, key.encode()) for key in accepted) or scheme.lower() != "bearer":
        raise Refusal(
            HTTPStatus.UNAUTHORIZED,
            f"The key is missing or wrong: send 'Authorization: Bearer <key>', with RELIABLE_CABLE[{setting.upper()!r}]"
            f" or, where that is not set, the key derived for {purpose!r}.",
        )


def read_body(request: HttpRequest) -> bytes:
    """Return the body; of one that is too large no more is read than tells so.

    Raises:
        Refusal: it is too large.
    """
    limit = BODY_FACTOR * get_settings().max_broadcast_size
    body = request.read(limit + 1)
    if len(body) > limit:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body has more than {limit} bytes, {BODY_FACTOR} times RELIABLE_CABLE['MAX_BROADCAST_SIZE'].",
        )
    return body
