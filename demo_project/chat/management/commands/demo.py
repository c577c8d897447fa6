"""`manage.py demo` prepares the demo and starts the server."""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser

from demo_project.chat.accounts import DEMO_USERS, create_demo_data
from demo_project.chat.packages import copy_packages


class Command(BaseCommand):
    """Migrates the database, creates users and rooms, bundles the client if needed, and starts the server."""

    help = "Prepare the demo and start it. It needs no Redis and no other service."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options of the command."""
        parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
        parser.add_argument("--port", type=int, default=8000, help="the port (default: %(default)s)")
        parser.add_argument("--no-reload", action="store_true", help="do not restart when code changes")
        parser.add_argument("--prepare-only", action="store_true", help="prepare everything, but start no server")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prepare the demo, and start the server unless `--prepare-only` is given."""
        # The reloader runs this command again in a child process, where everything is prepared already.
        if os.environ.get("RUN_MAIN") != "true":
            self._prepare(options["verbosity"])
            if not options["prepare_only"]:
                address = f"http://{options['host']}:{options['port']}/"
                self.stdout.write(
                    self.style.SUCCESS(f"\n  The demo: {address}")
                    + f"\n  Users {', '.join(DEMO_USERS)}; password: {settings.DEMO_PASSWORD}\n"
                )
        if not options["prepare_only"]:
            call_command("runserver", f"{options['host']}:{options['port']}", use_reloader=not options["no_reload"])

    def _prepare(self, verbosity: int) -> None:
        self.stdout.write("Preparing the database and the client…")
        call_command("migrate", interactive=False, verbosity=max(verbosity - 1, 0))
        create_demo_data()
        call_command("cable_client", verbosity=max(verbosity - 1, 0))
        copy_packages()
