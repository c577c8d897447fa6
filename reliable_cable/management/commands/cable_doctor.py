"""`manage.py cable_doctor`: does the engine keep its promises here?"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from reliable_cable.conf import get_settings
from reliable_cable.exceptions import CableError
from reliable_cable.stores.engine import Engine, engine_paths, get_engine
from reliable_cable.stores.streams.base import Message, StreamEvent, StreamStore

#: Seconds that a probe may take to arrive.
PATIENCE = 5.0


class Command(BaseCommand):
    """Looks at the engine and what it stands on, and sends a message through it."""

    help = "Tells what keeps the engine from its promises, and sends a message through it. Fails if anything is wrong."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the option `--new-epochs`."""
        parser.add_argument(
            "--new-epochs",
            action="store_true",
            help="first delete every stream's history and end its epoch: required after every restore from a backup",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print what is in force, and what is wrong."""
        settings = get_settings()
        for part, path in engine_paths(settings).items():
            self.stdout.write(f"{part}: {path}")
        engine = get_engine()
        store = engine.streams
        try:
            if options["new_epochs"]:
                self.stdout.write(f"Epochs ended: {store.forget_all()}.")
            problems = store.problems()
            for name, seconds in _clock_differences(engine).items():
                place = "ahead of" if seconds > 0 else "behind"
                self.stdout.write(f"The clock of {name} is {abs(seconds):.3f} s {place} this host's.")
            took = asyncio.run(_probe(store))
        except CableError as error:
            raise CommandError(f"The engine does not work: {error}") from error
        if took is None:
            problems.append(f"A message that was stored did not arrive within {PATIENCE:.0f} s.")
        else:
            self.stdout.write(f"A message went through it in {took * 1000:.1f} ms.")
        if problems:
            raise CommandError("\n".join(problems))
        self.stdout.write(self.style.SUCCESS("Nothing is wrong."))


def _clock_differences(engine: Engine) -> dict[str, float]:
    """Return how many seconds each server's clock is ahead of this host's, exact to half a round trip."""
    differences = {}
    for name, ask in {**engine.streams.clocks(), **engine.sessions.clocks()}.items():
        asked = time.time()
        told = ask()
        differences[name] = told - (asked + time.time()) / 2
    return differences


async def _probe(store: StreamStore) -> float | None:
    """Send a message, and return the seconds until it was heard; None if it was not."""
    stream = f"cable_doctor:{secrets.token_hex(8)}"
    arrived = asyncio.Event()

    def deliver(event: StreamEvent) -> None:
        arrived.set()

    listener = store.listen(deliver)
    try:
        await listener.subscribe(stream)
        started = time.perf_counter()
        await store.apublish_transient(stream, Message('{"probe":true}'))
        async with asyncio.timeout(PATIENCE):
            await arrived.wait()
    except TimeoutError:
        return None
    else:
        return time.perf_counter() - started
    finally:
        await listener.close()
        await store.aclose()
