"""`manage.py cable_prune` deletes old messages, old presence data and expired sessions."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from reliable_cable.exceptions import CableError
from reliable_cable.stores.engine import get_engine


class Command(BaseCommand):
    """Deletes old messages, old presence data and expired sessions.

    A server also deletes them while clients are connected to it. If clients are rarely connected, run this command from
    a cron job.
    """

    help = (
        "Deletes messages beyond their stream's history size or TTL, streams without new messages for "
        "HISTORY_META_TTL, old transient messages, old presence data and expired sessions. Each transaction deletes "
        "few rows."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options `--limit` and `--no-sessions`."""
        parser.add_argument(
            "--limit",
            type=int,
            default=1000,
            help="how many rows to delete at a time (default: 1000); the command repeats this until none is left",
        )
        parser.add_argument("--no-sessions", action="store_true", help="do not delete sessions")

    def handle(self, *args: Any, **options: Any) -> None:
        """Delete rows until no old ones are left, and print the number of deleted rows."""
        limit: int = options["limit"]
        if limit < 1:
            raise CommandError(f"--limit is {limit}; it must be at least 1.")
        engine = get_engine()
        try:
            streams = sum(iter(lambda: engine.streams.prune(limit=limit), 0))
            self.stdout.write(f"Messages and idle streams: {streams} deleted.")
            presence = sum(iter(lambda: engine.presence.prune(limit=limit), 0))
            self.stdout.write(f"Old presence data: {presence} deleted.")
            if not options["no_sessions"]:
                sessions = sum(iter(lambda: engine.sessions.prune(limit=limit), 0))
                self.stdout.write(f"Sessions: {sessions} deleted.")
        except CableError as error:
            raise CommandError(str(error)) from error
