"""The channel and the ASGI application of the project."""

from __future__ import annotations

from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.auth.models import User
from django.db import transaction
from django.urls import path

from reliable_cable import CableConsumer, Channel, action, state


class RoomChannel(Channel):
    """A room, in which each message creates a user. Params: `room`."""

    count = state(default=0)

    def subscribed(self) -> None:
        if not self.user.is_authenticated:
            return self.reject()
        self.stream_for(self.params["room"])
        self.presence.join(self.user.pk)

    def unsubscribed(self) -> None:
        User.objects.filter(pk=self.user.pk).update(first_name="left")

    @action
    def speak(self, data: dict[str, Any]) -> int:
        self.count += 1
        with transaction.atomic():
            User.objects.create(username=data["text"])
            RoomChannel.broadcast_to(self.params["room"], data["text"])
        return self.count


application = ProtocolTypeRouter(
    {"websocket": AuthMiddlewareStack(URLRouter([path("cable", CableConsumer.as_asgi())]))}
)
