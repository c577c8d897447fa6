"""`manage.py demo`: everything that the demo needs, then the server."""

from __future__ import annotations

import os
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser

from demo_project.chat.accounts import DEMO_USERS, PASSWORD, create_demo_data


class Command(BaseCommand):
    """Migrates, makes users and rooms, bundles the client if needed, and serves."""

    help = "Prepare the demo and start it: no Redis, no other service."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add `--host`, `--port`, `--no-reload` and `--prepare-only`."""
        parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
        parser.add_argument("--port", type=int, default=8000, help="the port (default: %(default)s)")
        parser.add_argument("--no-reload", action="store_true", help="do not restart when code changes")
        parser.add_argument("--prepare-only", action="store_true", help="prepare everything, start no server")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prepare and serve."""
        # The reloader starts this command again in a child; the parent has prepared everything.
        if os.environ.get("RUN_MAIN") != "true":
            self._prepare(options["verbosity"])
            if not options["prepare_only"]:
                address = f"http://{options['host']}:{options['port']}/"
                self.stdout.write(
                    self.style.SUCCESS(f"\n  The demo: {address}")
                    + f"\n  Users {', '.join(DEMO_USERS)}; password: {PASSWORD}\n"
                )
        if not options["prepare_only"]:
            call_command("runserver", f"{options['host']}:{options['port']}", use_reloader=not options["no_reload"])

    def _prepare(self, verbosity: int) -> None:
        self.stdout.write("Preparing the database and the client…")
        call_command("migrate", interactive=False, verbosity=max(verbosity - 1, 0))
        create_demo_data()
        call_command("cable_client", verbosity=max(verbosity - 1, 0))
