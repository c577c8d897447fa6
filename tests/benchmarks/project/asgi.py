"""The ASGI application. `CABLE_BENCH_APPLICATION` chooses the application behind `AuthMiddlewareStack`."""

from __future__ import annotations

import os
from collections.abc import Awaitable
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.benchmarks.project.settings")
http = get_asgi_application()

# These need the Django apps, which the line above has loaded.
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.urls import path  # noqa: E402

from reliable_cable.consumer import CableConsumer  # noqa: E402
from reliable_cable.http import CableHTTP  # noqa: E402
from tests.benchmarks.fanout import bare  # noqa: E402
from tests.benchmarks.project.receivers import Receiver, receive_post, receiver  # noqa: E402
from tests.benchmarks.project.stock import StockConsumer  # noqa: E402


class Opaque:
    """Wraps a `send`, so that the package does not recognise the server and uses only ASGI."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, event: dict[str, Any]) -> Awaitable[None]:
        """Send an event."""
        return self._call(event)  # type: ignore[no-any-return]


cable = CableConsumer.as_asgi()


async def plain(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Serve the cable in such a way that the package does not recognise the server."""
    await cable(scope, receive, Opaque(send))


async def bare_hub(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Serve the bare hub, which is then behind the same middlewares as the cable."""
    await bare.application(scope, receive, send)


async def bare_or_django(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Serve the HTTP requests that `CableHTTP` does not handle."""
    await (receive_post if scope["path"] == "/bare" else http)(scope, receive, send)


applications = {
    "cable": cable,
    "plain": plain,
    "bare": bare_hub,
    "stock": StockConsumer.as_asgi(),
    "receiver": receiver,
    "consumer": Receiver.as_asgi(),
}
inner = applications[os.environ.get("CABLE_BENCH_APPLICATION", "cable")]
application = ProtocolTypeRouter(
    {
        # The path is /direct, because the view in `reliable_cable.urls` has the usual one. `/bare` broadcasts nothing.
        "http": CableHTTP(bare_or_django, broadcast="/direct", consumer=CableConsumer),
        "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter([path("cable", inner)]))),
    }
)
