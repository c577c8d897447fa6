"""The demo's users and rooms."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.db import transaction

from .models import Room

DEMO_USERS = ("alice", "bob", "carol", "dave")
PASSWORD = "reliable"  # noqa: S105 - shown on the login page

#: For each room's slug: its name, its topic and its members. Rooms without members are open to all users.
ROOMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "lobby": ("Lobby", "Everybody is welcome here", ()),
    "workshop": ("Workshop", "Cut cables, repair cables", ()),
    "alice-and-bob": ("Alice and Bob", "For the two of them only", ("alice", "bob")),
}


@transaction.atomic
def create_demo_data() -> None:
    """Create the demo's users and rooms unless they exist. Alice becomes a superuser."""
    users = {}
    for name in DEMO_USERS:
        user, created = User.objects.get_or_create(username=name, defaults={"first_name": name.title()})
        if created:
            user.is_staff = user.is_superuser = name == "alice"
            user.set_password(PASSWORD)
            user.save()
        users[name] = user
    for slug, (title, topic, members) in ROOMS.items():
        room, created = Room.objects.get_or_create(
            slug=slug, defaults={"name": title, "topic": topic, "is_private": bool(members)}
        )
        if created:
            room.members.set(users[name] for name in members)
