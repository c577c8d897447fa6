"""Creates the demo's users and rooms."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

from .models import Room

DEMO_USERS = ("alice", "bob", "carol", "dave")

#: The name, the topic and the members of each room, by slug. Rooms without members are open to all users.
ROOMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "lobby": ("Lobby", "Everybody is welcome here", ()),
    "workshop": ("Workshop", "Cut cables, repair cables", ()),
    "alice-and-bob": ("Alice and Bob", "For the two of them only", ("alice", "bob")),
}


@transaction.atomic
def create_demo_data() -> None:
    """Create the demo's users and rooms unless they exist. Set the password of all these users to `DEMO_PASSWORD`.

    Raises:
        ImproperlyConfigured: `DEMO_PASSWORD` is empty.
    """
    if not settings.DEMO_PASSWORD:
        raise ImproperlyConfigured("DEMO_PASSWORD is not set; it must be the password of the demo's users.")
    users = {}
    for name in DEMO_USERS:
        user, _ = User.objects.get_or_create(username=name, defaults={"first_name": name.title()})
        user.is_staff = user.is_superuser = settings.DEMO_OPEN_ACCOUNTS and name == "alice"
        if not user.check_password(settings.DEMO_PASSWORD):
            user.set_password(settings.DEMO_PASSWORD)
        user.save()
        users[name] = user
    for slug, (title, topic, members) in ROOMS.items():
        room, created = Room.objects.get_or_create(
            slug=slug, defaults={"name": title, "topic": topic, "is_private": bool(members)}
        )
        if created:
            room.members.set(users[name] for name in members)
