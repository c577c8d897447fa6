"""`manage.py cable_client` bundles the JavaScript client in a checkout of reliable_cable."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from reliable_cable.client.build import STATIC, ClientBuildError, build


class Command(BaseCommand):
    """Creates the JavaScript bundle that `{% cable_script %}` loads. Wheels of this package already contain it."""

    help = "Bundle the JavaScript client into the static files, if it is missing or older than its sources."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the option `--force`."""
        parser.add_argument("--force", action="store_true", help="create the bundle even if it is up to date")

    def handle(self, *args: Any, **options: Any) -> None:
        """Create the bundle if it is missing or older than its sources."""
        try:
            made = build(force=options["force"])
        except ClientBuildError as error:
            raise CommandError(str(error)) from error
        if options["verbosity"]:
            self.stdout.write(f"Bundled the client into {STATIC}" if made else "The bundle of the client is up to date")
