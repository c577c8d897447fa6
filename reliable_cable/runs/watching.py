"""Tells the readers of a run that the run has ended, if its writer could not tell them."""

import asyncio
import logging
import uuid
from collections.abc import Collection
from datetime import timedelta
from typing import Final
from weakref import WeakSet

from django.db.models import Q
from django.db.models.functions import Now

from reliable_cable.concurrency.outages import is_outage
from reliable_cable.concurrency.per_loop import PerLoop
from reliable_cable.concurrency.threads import run_store_write

from .models import Run, Status

logger = logging.getLogger("reliable_cable")

#: The interval, in seconds, at which each server looks for runs that have ended or whose writer has died.
INTERVAL: Final = 2.0
#: How long, in seconds, servers repeat the announcement that a run has ended, in case its writer could not announce it.
ENDED_TIME: Final = 30
#: The maximum number of runs in one query.
BATCH: Final = 500


class Reader:
    """A client's subscription to a run, over a connection to this server.

    Args:
        run: the id of the run.
    """

    def __init__(self, run: uuid.UUID) -> None:
        self.run = run


class RunWatcher:
    """Checks regularly whether the runs with readers on this event loop have ended, and announces their ends."""

    def __init__(self) -> None:
        self._readers: WeakSet[Reader] = WeakSet()
        self._task: asyncio.Task[None] | None = None

    def add(self, reader: Reader) -> None:
        """Watch the run of a reader until the reader is garbage-collected."""
        self._readers.add(reader)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        failing = False
        try:
            while self._readers:
                await asyncio.sleep(INTERVAL)
                try:
                    await run_store_write(announce_ends, {reader.run for reader in self._readers})
                    failing = False
                except Exception as error:
                    if not is_outage(error):
                        logger.exception("Ended runs could not be read from the database.")
                    elif not failing:
                        logger.warning("Ended runs cannot be read from the database; trying again: %s", error)
                    failing = True
        finally:
            self._task = None


def announce_ends(runs: Collection[uuid.UUID]) -> None:
    """Fail the runs whose writer has died, and broadcast the ends of the runs that have ended recently.

    The writer of a run broadcasts its end, too. An idempotency key prevents a second message.

    Args:
        runs: the ids of the runs to check.
    """
    ids = list(runs)
    ended = ~Q(status__in=(Status.QUEUED, Status.RUNNING)) & Q(ended_at__gt=Now() - timedelta(seconds=ENDED_TIME))
    for begin in range(0, len(ids), BATCH):
        batch = Run.objects.get_queryset().filter(pk__in=ids[begin : begin + BATCH])
        for run in batch.abandoned():
            run.end_if_abandoned()
        for run in batch.filter(ended).defer("text", "parts"):
            run.announce_end()


_watchers: PerLoop[RunWatcher] = PerLoop()


def watcher() -> RunWatcher:
    """Return the watcher of the running event loop."""
    return _watchers.get(RunWatcher)
