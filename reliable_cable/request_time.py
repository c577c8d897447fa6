"""When an HTTP request began. What its view reads from the database is at least that new."""

import time
from collections.abc import MutableMapping
from typing import Any, Final

from django.core.signals import request_started
from django.http import HttpRequest

#: The key of the time in the environment (WSGI) or the scope (ASGI) of a request. A context variable would not do:
#: under ASGI, Django sends its signal in another context than that of the view.
_KEY: Final = "reliable_cable.request_began"


def request_began(request: HttpRequest) -> float | None:
    """Return when a request began, in seconds of `time.monotonic()`; None if no server has received it."""
    began: float | None = getattr(request, "scope", request.META).get(_KEY)
    return began


def connect_receiver() -> None:
    """Note the beginning of every request from now on."""
    request_started.connect(_note, dispatch_uid="reliable_cable.request_time")


def _note(
    environ: MutableMapping[str, Any] | None = None, scope: MutableMapping[str, Any] | None = None, **kwargs: Any
) -> None:
    for request in (environ, scope):
        if request is not None:
            request[_KEY] = time.monotonic()
