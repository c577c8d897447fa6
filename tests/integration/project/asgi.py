"""The ASGI application of the project."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.integration.project.settings")
http = get_asgi_application()

# These imports need the apps, which were loaded above.
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.urls import path  # noqa: E402

from reliable_cable.auth import CableAuthMiddlewareStack  # noqa: E402
from reliable_cable.conf import get_settings  # noqa: E402
from reliable_cable.http import CableHTTP  # noqa: E402
from tests.integration.project.consumers import LayeredConsumer, ProjectConsumer, TenantConsumer  # noqa: E402

# Tests of tokens set JWT_SECRET.
authenticated = CableAuthMiddlewareStack if get_settings().reads_tokens else AuthMiddlewareStack

#: Serves WebSockets, and the calls of anycable-go (RPC_CONSUMER).
websocket = authenticated(
    URLRouter(
        [
            path("cable", ProjectConsumer.as_asgi()),
            path("tenants", TenantConsumer.as_asgi()),
            # This path also has the origin check of Channels itself, as in older projects.
            path("layered", AllowedHostsOriginValidator(LayeredConsumer.as_asgi())),
        ]
    )
)

application = ProtocolTypeRouter(
    {
        # These paths begin with /direct, because the usual ones belong to the views in `reliable_cable.urls`.
        "http": CableHTTP(
            http,
            broadcast="/direct/_broadcast",
            publish="/direct/api/publish",
            presence="/direct/api/presence/<stream>/users",
            consumer=authenticated(ProjectConsumer.as_asgi()),
        ),
        "websocket": websocket,
    }
)
