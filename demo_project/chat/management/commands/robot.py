"""`manage.py robot`: lines for a room, said by a process of its own."""

from __future__ import annotations

import asyncio
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from demo_project.chat.models import Room
from demo_project.chat.robot import talk


class Command(BaseCommand):
    """Broadcasts from outside the server: its pages get the lines all the same, even across the server's restart."""

    help = "Say numbered lines in a room."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the room, `--count` and `--interval`."""
        parser.add_argument("room", help="the room's slug, such as lobby")
        parser.add_argument("--count", type=int, default=10, help="how many lines (default: %(default)s)")
        parser.add_argument("--interval", type=float, default=0.0, help="seconds between two (default: %(default)s)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Say the lines."""
        room = Room.objects.filter(slug=options["room"]).first()
        if room is None:
            raise CommandError(f"There is no room {options['room']!r}.")
        asyncio.run(talk(room.pk, options["count"], options["interval"]))
