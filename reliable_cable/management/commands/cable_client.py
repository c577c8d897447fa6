"""`manage.py cable_client`: bundles the JavaScript client into the static files."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from reliable_cable.client.build import STATIC, ClientBuildError, build


class Command(BaseCommand):
    """Makes the bundle that the template tags load; installed wheels hold it already."""

    help = "Bundle the JavaScript client into the static files, if it is missing or older than its sources."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add `--force`."""
        parser.add_argument("--force", action="store_true", help="bundle it even if it is up to date")

    def handle(self, *args: Any, **options: Any) -> None:
        """Make the bundle."""
        try:
            made = build(force=options["force"])
        except ClientBuildError as error:
            raise CommandError(str(error)) from error
        if options["verbosity"]:
            self.stdout.write(f"Bundled the client into {STATIC}" if made else "The client's bundle is up to date")
