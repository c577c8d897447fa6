"""`manage.py robot` sends messages to a room, from another process than the server."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from demo_project.chat.models import Room
from demo_project.chat.robot import talk


class Command(BaseCommand):
    """Sends numbered messages to a room. Pages receive all of them, even if the server restarts meanwhile."""

    help = "Send numbered lines to a room."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the arguments of the command."""
        parser.add_argument("room", help="the room's slug, such as lobby")
        parser.add_argument("--count", type=int, default=10, help="how many lines (default: %(default)s)")
        parser.add_argument(
            "--interval", type=float, default=0.0, help="seconds between two lines (default: %(default)s)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Find the room by its slug, and send the messages."""
        room = Room.objects.filter(slug=options["room"]).first()
        if room is None:
            raise CommandError(f"There is no room {options['room']!r}.")
        talk(room.pk, options["count"], options["interval"])
