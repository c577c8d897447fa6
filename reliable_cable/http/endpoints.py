"""The code that all endpoints share: keys, errors as JSON, and a limit for the size of bodies."""

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

#: The size limit of a body, as a multiple of `MAX_BROADCAST_SIZE`. A body may contain many payloads, with escapes.
BODY_FACTOR = 8


class Refusal(Exception):
    """An error to be sent as the response.

    Args:
        status: the status of the response.
        message: says what was wrong and what is allowed.
        details: additional keys of the JSON response.
    """

    def __init__(self, status: HTTPStatus, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.details = details

    def response(self) -> HttpResponse:
        response = JsonResponse({"error": str(self), **self.details}, status=self.status)
        if self.status == HTTPStatus.UNAUTHORIZED:
            response["WWW-Authenticate"] = "Bearer"
        return response


def endpoint(purpose: str, setting: str) -> Callable[[View], View]:
    """Decorate a view so that it requires a key, and sends a `Refusal` as JSON.

    The view is sync, so Django runs it in a thread under ASGI. It never runs in a transaction of `ATOMIC_REQUESTS`.
    Otherwise, a broadcast would be sent after the commit, and the response could not tell whether it succeeded.

    Args:
        purpose: the purpose for which the key is derived if the settings have none.
        setting: the name of the setting with the key, in lower case.
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
    # Servers decode headers as Latin-1, whatever their encoding is.
    given = token.strip().encode("latin-1", "replace")
    accepted = accepted_keys(purpose, getattr(get_settings(), setting))
    # Every key is compared, so that the response time does not reveal which one was right.
    if not sum(hmac.compare_digest(given, key.encode()) for key in accepted) or scheme.lower() != "bearer":
        raise Refusal(
            HTTPStatus.UNAUTHORIZED,
            f"The key is missing or wrong: send 'Authorization: Bearer <key>'. The key is RELIABLE_CABLE"
            f"[{setting.upper()!r}] or, if that is not set, the one derived for {purpose!r}.",
        )


def read_body(request: HttpRequest) -> bytes:
    """Return the body of a request. Stop reading as soon as the body is known to be too large.

    Raises:
        Refusal: the body is too large.
    """
    limit = BODY_FACTOR * get_settings().max_broadcast_size
    body = request.read(limit + 1)
    if len(body) > limit:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body has more than {limit} bytes, {BODY_FACTOR} times RELIABLE_CABLE['MAX_BROADCAST_SIZE'].",
        )
    return body
