"""Clients that connect with a token, and the consumer that they connect to."""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.test import Client as Browser

from reliable_cable import CableConsumer
from reliable_cable.auth import CableAuthMiddlewareStack
from tests.unit.wire import Client

WELCOME, REFUSED = "welcome", {"type": "disconnect", "reason": "unauthorized", "reconnect": False}
EXPIRED = {"type": "disconnect", "reason": "token_expired", "reconnect": False}


class TokenConsumer(CableConsumer):
    """Records the user, the token and the room that `connect` finds."""

    identified_by = ("user", "room")
    room: Any = None
    seen: Any = None

    def connect(self) -> Any:
        """Record the token and the identifiers; refuse a token with the claim `banned`."""
        type(self).seen = (self.user, self.token, self.room)
        if self.token and self.token.get("banned"):
            self.reject_connection()


def make_client(token: str = "", *, stack: Any = CableAuthMiddlewareStack, cookie: str = "", **options: Any) -> Client:
    client = Client(consumer=TokenConsumer, query=f"jid={token}" if token else "", **options)
    client.communicator.application = stack(TokenConsumer.as_asgi())
    if cookie:
        client.communicator.scope["headers"] = [
            *client.communicator.scope["headers"],
            (b"cookie", f"{django_settings.SESSION_COOKIE_NAME}={cookie}".encode()),
        ]
    return client


async def first_frame(client: Client) -> Any:
    """Connect, and return the first frame."""
    connected, _ = await client.communicator.connect()
    assert connected
    frame = await client.receive()
    await client.communicator.disconnect()
    return frame


async def log_in(user: Any) -> str:
    browser = Browser()
    await sync_to_async(browser.force_login)(user)
    return str(browser.cookies[django_settings.SESSION_COOKIE_NAME].value)
