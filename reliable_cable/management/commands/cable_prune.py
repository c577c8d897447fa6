"""`manage.py cable_prune`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from reliable_cable.exceptions import CableError
from reliable_cable.stores.engine import get_engine


class Command(BaseCommand):
    """Deletes what is past its time. Servers do so by themselves while clients are connected; a cron job may, too."""

    help = (
        "Deletes messages past their stream's size or time, streams idle for 30 days, old transient messages and "
        "expired sessions, in small transactions."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the size of a transaction's bite, and what to leave out."""
        parser.add_argument(
            "--limit",
            type=int,
            default=1000,
            help="rows to delete at a time (default: 1000); all are deleted in the end",
        )
        parser.add_argument("--no-sessions", action="store_true", help="leave sessions alone")

    def handle(self, *args: Any, **options: Any) -> None:
        """Delete until nothing is left to delete."""
        limit: int = options["limit"]
        if limit < 1:
            raise CommandError(f"--limit is {limit}; it must be at least 1.")
        engine = get_engine()
        try:
            streams = _exhaust(lambda: engine.streams.prune(limit=limit))
            self.stdout.write(f"Streams: {streams} deleted.")
            if not options["no_sessions"]:
                sessions = _exhaust(lambda: engine.sessions.prune(limit=limit))
                self.stdout.write(f"Sessions: {sessions} deleted.")
        except CableError as error:
            raise CommandError(str(error)) from error


def _exhaust(prune: Callable[[], int]) -> int:
    total = 0
    while count := prune():
        total += count
    return total
