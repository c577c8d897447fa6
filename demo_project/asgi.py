"""The ASGI application. Django serves the pages. `AppConsumer` serves the WebSockets and the server-sent events."""

from __future__ import annotations

import os

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demo_project.settings")
django_application = get_asgi_application()  # this loads the apps, which the imports below need

from demo_project.chat.consumers import AppConsumer  # noqa: E402
from reliable_cable.http import CableHTTP  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": CableHTTP(django_application, consumer=AppConsumer),
        "websocket": AuthMiddlewareStack(URLRouter([path("cable", AppConsumer.as_asgi())])),
    }
)
