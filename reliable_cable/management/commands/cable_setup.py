"""`manage.py cable_setup` adds reliable_cable to a project."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

if TYPE_CHECKING:
    from reliable_cable.setup.plan import Plan

NEXT_STEPS = """
Next:

    python manage.py migrate
    python manage.py runserver
"""
EXAMPLE = """
Then open http://127.0.0.1:8000/{url} in two windows. `python manage.py test {app}` runs the tests of the example.
"""


class Command(BaseCommand):
    """Shows a diff of the changes that a project needs for this package, and makes them if the user agrees."""

    help = (
        "Adds reliable_cable to this project: settings, the routing in asgi.py, and an example with a channel, a page "
        "and tests. Shows a diff first. If reliable_cable is not in INSTALLED_APPS yet, run "
        "`python -m reliable_cable.setup`."
    )
    # Before the changes of this command are made, the system checks may fail.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options `--yes`, `--dry-run` and `--no-example`."""
        answer = parser.add_mutually_exclusive_group()
        answer.add_argument("--yes", action="store_true", help="make the changes without asking")
        answer.add_argument("--dry-run", action="store_true", help="only show the changes")
        parser.add_argument("--no-example", dest="example", action="store_false", help="do not add the example app")

    def handle(self, *args: Any, **options: Any) -> None:
        """Show the plan, and make its changes if the user agrees."""
        try:
            from reliable_cable.setup.example import APP, URL
            from reliable_cable.setup.planning import make_plan
        except ImportError as error:
            if (error.name or "").partition(".")[0] != "libcst":
                raise
            raise CommandError(
                "The Python package libcst is not installed: pip install 'reliable_cable[setup]'"
            ) from error
        plan = make_plan(example=options["example"])
        self._show(plan)
        if not plan.changes or options["dry_run"] or not (options["yes"] or self._confirmed()):
            return
        try:
            plan.apply()
        except OSError as error:
            raise CommandError(f"Not all changes were made: {error}") from error
        self.stdout.write(self.style.SUCCESS(f"Files written: {len(plan.changes)}."))
        if plan.steps:
            self.stdout.write(self.style.WARNING('Write the code that is shown above, after "Not changed".'))
        self.stdout.write(NEXT_STEPS)
        if options["example"]:
            self.stdout.write(EXAMPLE.format(app=APP, url=URL))

    def _show(self, plan: Plan) -> None:
        for line in plan.diff():
            self.stdout.write(line)
        for step in plan.steps:
            self.stdout.write(self.style.WARNING(f"\nNot changed: {step.what}"))
            self.stdout.write("\n" + "".join(f"    {line}\n" for line in step.code.strip().splitlines()))
        for note in plan.notes:
            self.stdout.write(self.style.WARNING(f"\nNote: {note}"))
        if not plan.changes:
            self.stdout.write(
                "Nothing to change." if not plan.steps else "There is nothing that this command can change."
            )

    def _confirmed(self) -> bool:
        try:
            return input("\nMake these changes? [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False
