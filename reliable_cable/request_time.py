"""Records the time at which an HTTP request began, which is before the view reads its data from the database."""

import time
from collections.abc import MutableMapping
from typing import Any, Final

from django.core.signals import request_started
from django.http import HttpRequest

#: The key of the time when a request began, in the environment (WSGI) or the scope (ASGI) of the request. A context
#: variable cannot be used: with ASGI, Django 5.2 runs the receivers of `request_started` in another context than the
#: view.
_KEY: Final = "reliable_cable.request_began"


def request_began(request: HttpRequest) -> float | None:
    """Return the time at which a request began, by `time.monotonic()`.

    Return None if `request_started` was not sent for the request, for example if it comes from `RequestFactory`.
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
