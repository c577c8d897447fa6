"""`manage.py cable_doctor` checks whether the stores of streams, presence and sessions work."""

import asyncio
import secrets
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from reliable_cable.conf import get_settings
from reliable_cable.exceptions import CableError
from reliable_cable.stores.engine import Engine, engine_paths, get_engine
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.streams.base import Message, StreamStore
from reliable_cable.stores.streams.memory import MemoryStreamStore

#: How long, in seconds, to wait for the test message.
PROBE_TIMEOUT = 5.0
PROBE = Message('{"probe":true}')

STREAMS_IN_MEMORY = (
    "Streams are in the memory of each process. The clients of a server do not receive broadcasts from other processes "
    "(tasks, the shell, a second server process). Remove ENGINE, so that streams are in the database, or set REDIS_URL."
)
PRESENCE_IN_MEMORY = (
    "Presence is in the memory of each server process. With several processes, a client sees only the members that are "
    "connected to the same process. Remove ENGINE, so that members are in the database, or set REDIS_URL."
)


class Command(BaseCommand):
    """Checks the stores and the clocks of their servers, and sends a test message through the stream store."""

    help = "Checks the stores and their servers, and sends a test message through them. Fails if anything is wrong."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the option `--new-epochs`."""
        parser.add_argument(
            "--new-epochs",
            action="store_true",
            help="first delete the history of all streams and end their epochs; required after a restore from a backup",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the stores, the differences between the clocks, and the travel time of a test message.

        Raises:
            CommandError: something is wrong. The message lists all problems.
        """
        settings = get_settings()
        engine = get_engine()
        for part, path in engine_paths(settings).items():
            self.stdout.write(f"{part}: {path}, {getattr(engine, part).place}")
        store = engine.streams
        took: float | None = None
        try:
            if options["new_epochs"]:
                self.stdout.write(f"Epochs ended: {store.forget_all()}.")
            problems = store.problems()
            for note in store.notes():
                self.stdout.write(note)
            for name, seconds in _clock_differences(engine).items():
                place = "ahead of" if seconds > 0 else "behind"
                self.stdout.write(f"The clock of {name} is {abs(seconds):.3f} s {place} this host's.")
            if settings.broadcast_adapter is not None:
                store.publish_transient(_probe_stream(), PROBE)
            else:
                took = asyncio.run(_probe(store))
        except CableError as error:
            raise CommandError(f"The engine does not work: {error}") from error
        if settings.broadcast_adapter is not None:
            self.stdout.write("A test message was sent. Whether anycable-go has received it cannot be seen here.")
        elif took is None:
            problems.append(f"A test message was sent, but did not arrive within {PROBE_TIMEOUT:.0f} s.")
        else:
            self.stdout.write(f"A test message arrived after {took * 1000:.1f} ms.")
        if isinstance(store, MemoryStreamStore):
            self.stdout.write(self.style.WARNING(STREAMS_IN_MEMORY))
        elif isinstance(engine.presence, MemoryPresenceStore):
            self.stdout.write(self.style.WARNING(PRESENCE_IN_MEMORY))
        if problems:
            raise CommandError("\n".join(problems))
        self.stdout.write(self.style.SUCCESS("Nothing is wrong."))


def _clock_differences(engine: Engine) -> dict[str, float]:
    """Measure the differences between the clocks of the stores' servers and the clock of this host.

    The error of a difference is at most half the time of a round trip to the server.

    Returns:
        The number of seconds by which a server's clock is ahead of this host's clock, by the name of the server.
    """
    differences = {}
    for name, read_clock in {**engine.streams.clocks(), **engine.sessions.clocks()}.items():
        before = time.time()
        server_time = read_clock()
        differences[name] = server_time - (before + time.time()) / 2
    return differences


def _probe_stream() -> str:
    return f"cable_doctor:{secrets.token_hex(8)}"


async def _probe(store: StreamStore) -> float | None:
    """Send a test message, and return how many seconds it took; None if it took longer than `PROBE_TIMEOUT`."""
    stream = _probe_stream()
    arrived = asyncio.Event()
    listener = store.listen(lambda event: arrived.set())
    try:
        await listener.subscribe(stream)
        started = time.perf_counter()
        await store.apublish_transient(stream, PROBE)
        async with asyncio.timeout(PROBE_TIMEOUT):
            await arrived.wait()
    except TimeoutError:
        return None
    else:
        return time.perf_counter() - started
    finally:
        await listener.close()
        await store.aclose()
