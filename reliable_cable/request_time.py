"""Records the time at which an HTTP request began, which is before the view reads its data from the database."""

import time
from collections.abc import MutableMapping
from typing import Any, Final

from django.core.signals import request_started
from django.http import HttpRequest

#: The key of the time in the environment (WSGI) or the scope (ASGI) of a request. A context variable cannot be used,
#: because Django's ASGI handler does not send the signal in the context in which the view runs.
_KEY: Final = "reliable_cable.request_began"


def request_began(request: HttpRequest) -> float | None:
    """Return the time at which a request began, by `time.monotonic()`.

    Return None if `request_started` was not sent for the request, for example one from `RequestFactory`.
    """
    began: float | None = getattr(request, "scope", request.META).get(_KEY)
    return began


def connect_receiver() -> None:
    """Connect the receiver that records the time of each request."""
    request_started.connect(_note, dispatch_uid="reliable_cable.request_time")


def _note(
    environ: MutableMapping[str, Any] | None = None, scope: MutableMapping[str, Any] | None = None, **kwargs: Any
) -> None:
    for request in (environ, scope):
        if request is not None:
            request[_KEY] = time.monotonic()
