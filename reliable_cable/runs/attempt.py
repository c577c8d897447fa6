"""One attempt to write a run: its changes of the database and its broadcasts. All methods block."""

from __future__ import annotations

import logging
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from django.db.models.functions import Now

from reliable_cable.broadcasting import broadcast_batch, position
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.conf import get_settings
from reliable_cable.namespaces import use_namespace
from reliable_cable.protocol.positions import PagePosition

from . import events
from .coalescing import Coalescer
from .exceptions import RunNotQueued
from .models import Run, Status, lease
from .parts import Content

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("reliable_cable")

#: How often, in seconds, the answer is saved and the lease is renewed.
SAVE_INTERVAL: Final = 1.0
#: How long, in seconds, to wait after an error of the database or the store.
RETRY_DELAY: Final = 0.5


def in_namespace_of_run(method: Callable[Concatenate[Attempt, P], T]) -> Callable[Concatenate[Attempt, P], T]:
    """Make a method of an attempt run in the namespace in which its run was started."""

    @wraps(method)
    def wrapped(self: Attempt, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with use_namespace(self.run.namespace):
            return method(self, *args, **kwargs)

    return wrapped


class Attempt:
    """Writes one attempt of a run. Only one thread at a time may call `step` and `end`, so both use a lock.

    Args:
        run: the run, as it was read. Its row is changed by `begin`.
        clock: the clock for intervals and the lease, in seconds.
    """

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        settings = get_settings()
        self.coalescer = Coalescer(run.attempt, settings.run_broadcast_interval, settings.run_broadcast_size)
        #: How long, in seconds, this writer counts as alive after it has renewed its lease.
        self._lease = settings.run_lease
        #: Set when the run was stopped.
        self.stopped = False
        #: Set when the row no longer belongs to this writer.
        self.lost = False
        self.usage: dict[str, Any] = {}
        self._clock = clock
        self._writer = secrets.token_hex(16)
        self._content = Content()
        self._position: PagePosition | None = None
        #: Events that were taken, and are not broadcast yet, with their idempotency keys.
        self._unsent: deque[tuple[str, dict[str, Any]]] = deque()
        self._count = 0
        self._changed = False
        self._saved_at = 0.0
        self._retry_at = 0.0
        self._lock = threading.Lock()

    # -- the beginning ------------------------------------------------------------------------------------------------

    @in_namespace_of_run
    def begin(self) -> None:
        """Take the run, and tell its readers that the attempt starts.

        Raises:
            RunNotQueued: another task writes the run, or it has ended. A run that was stopped is no error.
        """
        run, now = self.run, self._clock()
        # No event of this attempt is on the stream, so a reader that gets the row gets everything after this position.
        self._position = position(run.stream)
        queued = Run.objects.filter(pk=run.pk, status=Status.QUEUED, attempt=run.attempt)
        if not queued.update(
            status=Status.RUNNING,
            writer=self._writer,
            position=str(self._position),
            started_at=Now(),
            lease_until=lease(self._lease),
        ):
            run.refresh_from_db()
            if run.status != Status.STOPPED:
                raise RunNotQueued(f"The run {run.pk} is {run.status}; only a queued run can be written.")
            self.stopped = True
            return
        run.refresh_from_db()
        self._saved_at = now
        self._add([events.start(run.attempt)])
        self._send()

    # -- while it is written ------------------------------------------------------------------------------------------

    def due(self) -> float:
        """Return when `step` has something to do, by the clock."""
        if self.lost:
            return self._saved_at + SAVE_INTERVAL
        flush = self.coalescer.due() if not self._unsent else self._retry_at
        return max(min(flush, self._saved_at + SAVE_INTERVAL), self._retry_at)

    @in_namespace_of_run
    def step(self) -> None:
        """Broadcast and save what is due. An outage is not an error: it is tried again at the next step."""
        with self._lock:
            now = self._clock()
            if self.lost or self.due() > now:
                return
            try:
                if self._saved_at + self._lease <= now:
                    self._save()  # the run may have been taken from this writer
                if not self.lost and (self._unsent or self.coalescer.due() <= now):
                    self._flush()
                if not self.lost and self._saved_at + SAVE_INTERVAL <= now:
                    self._save()
            except Exception as error:
                if not is_outage(error):
                    raise
                self._retry_at = now + RETRY_DELAY
                logger.warning("The run %s could not be broadcast or saved; trying again: %s", self.run.pk, error)

    def _flush(self) -> None:
        self._add(self.coalescer.take(self._clock()))
        self._send()

    def _add(self, taken: Any) -> None:
        for event in taken:
            self._count += 1
            self._unsent.append((f"{self.run.attempt}:{self._writer}:{self._count}", event))

    def _send(self) -> None:
        if not self._unsent:
            return
        stream = self.run.stream
        # After an error that leaves open whether the events were stored, the keys keep them from being sent twice.
        batch = [(stream, event, {"idempotency_key": key}) for key, event in self._unsent]
        positions = broadcast_batch(batch, immediate=True)  # type: ignore[arg-type]
        for _, event in self._unsent:
            if event["event"] == events.CHUNK:
                self._content.add_text(event["content"])
            elif event["event"] == events.PART:
                self._content.add_part(event["part"])
        self._unsent.clear()
        self._changed = True
        last = positions[-1]
        if last is not None and self._position is not None:
            self._position = PagePosition(last.epoch, last.offset, self._position.stream)

    def _save(self) -> None:
        """Save the content and renew the lease. Notice whether the run was stopped, or was taken from this writer."""
        began = self._clock()
        values: dict[str, Any] = {"lease_until": lease(self._lease)}
        if self._changed:
            values |= self._values()
        if self._own().update(**values):
            self._changed = False
            self._saved_at = began
        else:
            self.lost = True

    def _values(self) -> dict[str, Any]:
        return {
            "text": self._content.text,
            "parts": self._content.parts,
            "usage": self.usage,
            "position": "" if self._position is None else str(self._position),
        }

    def _own(self) -> Any:
        return Run.objects.filter(pk=self.run.pk, status=Status.RUNNING, writer=self._writer)

    # -- the end ------------------------------------------------------------------------------------------------------

    @in_namespace_of_run
    def end(self, status: Status, error: str = "") -> None:
        """Broadcast and save everything, and end the attempt.

        Errors of the store or the database are retried until the lease ends. Then the run fails by itself.

        Args:
            status: how the attempt ended.
            error: why it failed, for the user.

        Raises:
            Exception: the error of the last try.
        """
        with self._lock:
            until = self._clock() + self._lease
            while not self.lost:
                try:
                    self._flush()
                    ended = self._own().update(
                        **self._values(), status=status, error=error, ended_at=Now(), lease_until=None
                    )
                    break
                except Exception as failure:
                    if not is_outage(failure) or self._clock() > until:
                        raise
                    logger.warning("The run %s could not be saved; trying again: %s", self.run.pk, failure)
                    time.sleep(RETRY_DELAY)
            else:
                return
            self.run.refresh_from_db()
            if ended:
                try:
                    self.run.announce_end()
                except Exception as failure:
                    if not is_outage(failure):
                        raise
                    # A server that has readers of the run announces the end when the store works again.
                    logger.warning("The end of the run %s could not be broadcast: %s", self.run.pk, failure)


def stop_requests(runs: Sequence[uuid.UUID]) -> Sequence[uuid.UUID]:
    """Return the ids of those runs that were stopped and still run."""
    stopped = Run.objects.filter(pk__in=runs, status=Status.RUNNING, stop_requested=True)
    return list(stopped.values_list("pk", flat=True))
