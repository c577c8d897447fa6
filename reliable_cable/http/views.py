"""The Django views of the HTTP endpoints."""

from collections.abc import Callable

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from .broadcast import BROADCAST, PUBLISH
from .core import Endpoint, Request, run
from .presence import USERS

View = Callable[..., HttpResponse]


def make_view(endpoint: Endpoint) -> View:
    """Return a Django view that serves an endpoint.

    The view is sync, so under ASGI, Django runs it in a thread. The view never runs in a transaction of
    `ATOMIC_REQUESTS`. In such a transaction, a broadcast would be sent after the commit, and the response could not say
    whether the broadcast succeeded.
    """

    def view(request: HttpRequest, stream: str = "") -> HttpResponse:
        # `content_length` is not passed, so a body that is too large is read up to the limit, before it is refused. If
        # such a body were not read, WSGI servers would reset the connection, and the client would get no response.
        asked = Request(
            method=request.method or "",
            path=request.path,
            authorization=request.headers.get("Authorization", ""),
            stream=stream,
        )
        response = run(endpoint.respond(asked), request.read)
        return HttpResponse(response.body, status=response.status, headers=response.headers)

    for alias in connections:
        transaction.non_atomic_requests(using=alias)(view)
    return csrf_exempt(login_not_required(view))


broadcast = make_view(BROADCAST)
publish = make_view(PUBLISH)
users = make_view(USERS)
