"""Saves and broadcasts one attempt to write a run. All methods are sync and block their thread."""

from __future__ import annotations

import logging
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import islice
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from django.db import connections, router
from django.db.models.functions import Now

from reliable_cable.broadcasting import broadcast_batch, position
from reliable_cable.concurrency import on_commit
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.conf import get_settings
from reliable_cable.exceptions import BroadcastUncertain
from reliable_cable.namespaces import use_namespace
from reliable_cable.protocol.positions import PagePosition

from . import events
from .coalescing import MAX_CHUNK, Coalescer
from .exceptions import RunNotQueued
from .models import Run, Status, lease
from .parts import EVENT_SIZE, Content

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("reliable_cable")

#: The interval, in seconds, at which the answer is saved and the lease is renewed.
SAVE_INTERVAL: Final = 1.0
#: How long, in seconds, to wait before a retry after an error of the database or the stream store.
RETRY_DELAY: Final = 0.5


def in_namespace_of_run(method: Callable[Concatenate[Attempt, P], T]) -> Callable[Concatenate[Attempt, P], T]:
    """Decorate a method of `Attempt` so that it uses the namespace in which the run was started."""

    @wraps(method)
    def wrapped(self: Attempt, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with use_namespace(self.run.namespace):
            return method(self, *args, **kwargs)

    return wrapped


class Attempt:
    """Writes one attempt of a run. A lock lets only one thread at a time execute `step` or `end`.

    Args:
        run: the run, as it was read from the database. `begin` changes its row.
        clock: returns the time, in seconds, by which intervals and the lease are measured.
    """

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        settings = get_settings()
        # In JSON, a character has at most 12 bytes.
        max_chunk = max(1, min(MAX_CHUNK, (settings.max_broadcast_size - EVENT_SIZE) // 12))
        self.coalescer = Coalescer(run.attempt, settings.run_broadcast_interval, settings.run_broadcast_size, max_chunk)
        #: The duration of the lease, in seconds. If the lease is not renewed in this time, the writer counts as dead.
        self._lease = settings.run_lease
        #: Whether the run was stopped.
        self.stopped = False
        #: Whether the run no longer belongs to this writer.
        self.lost = False
        #: Whether the run is written in a transaction. Its events are then broadcast after the commit.
        self.in_transaction = False
        self.usage: dict[str, Any] = {}
        self._clock = clock
        self._writer = secrets.token_hex(16)
        self._content = Content()
        self._position: PagePosition | None = None
        #: The idempotency keys and events that were taken from the coalescer, but have not been broadcast yet.
        self._unsent: deque[tuple[str, dict[str, Any]]] = deque()
        self._count = 0
        #: The number of events that have been broadcast since the answer was last saved.
        self._unsaved = 0
        history_size = settings.policy(run.stream).history_size
        #: The maximum of `_unsaved`: half of the history size. So the history still contains all unsaved events if the
        #: writer dies.
        self._max_unsaved = max(1, history_size // 2)
        self._changed = False
        #: Whether the run was stopped before this attempt began, so that there is nothing to write or to end.
        self._was_stopped = False
        self._saved_at = 0.0
        self._retry_at = 0.0
        self._lock = threading.Lock()

    # -- begin --------------------------------------------------------------------------------------------------------

    @in_namespace_of_run
    def begin(self) -> None:
        """Mark the run as running, and broadcast that the attempt starts. If the run was stopped, only set `stopped`.

        Raises:
            RunNotQueued: another task is writing the run, or the run is completed or failed.
        """
        run, now = self.run, self._clock()
        # The stream has no event of this attempt yet, and the answer in the row is empty. So a reader can follow the
        # attempt from this position.
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
            if run.status == Status.STOPPED:
                self.stopped = self._was_stopped = True
                return
            # A former call of `begin` may have made the update before it failed.
            if run.writer != self._writer:
                raise RunNotQueued(f"The run {run.pk} is {run.status}; only a queued run can be written.")
        run.refresh_from_db()
        connection = connections[router.db_for_write(Run)]
        self.in_transaction = connection.in_atomic_block
        if on_commit.must_wait(connection):
            logger.warning(
                "The run %s is written in a transaction. Its readers receive the answer after the commit.", run.pk
            )
        self._saved_at = now
        self._add([events.start(run.attempt)])
        try:
            self._send()
        except Exception as error:
            self._delay_retry(error, now)

    # -- write --------------------------------------------------------------------------------------------------------

    def due(self) -> float:
        """Return the time, by the clock, at which to call `step` next."""
        if self.lost:
            return self._saved_at + SAVE_INTERVAL
        flush = self.coalescer.due() if not self._unsent else self._retry_at
        return max(min(flush, self._saved_at + SAVE_INTERVAL), self._retry_at)

    @in_namespace_of_run
    def step(self) -> None:
        """Broadcast and save the answer if this is due (see `due`). After an outage, the next call tries again."""
        with self._lock:
            now = self._clock()
            if self.lost or self.due() > now:
                return
            try:
                if self._saved_at + self._lease <= now:
                    self._save()  # the lease has expired: first check whether the run still belongs to this writer
                if not self.lost and (self._unsent or self.coalescer.due() <= now):
                    self._flush()
                if not self.lost and self._saved_at + SAVE_INTERVAL <= now:
                    self._save()
            except Exception as error:
                self._delay_retry(error, now)

    def _delay_retry(self, error: Exception, now: float) -> None:
        """Let `step` try again later if an outage caused an error. Otherwise, raise the error."""
        if not _may_pass(error):
            raise error
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
        while self._unsent and not self.lost:
            if self._unsaved >= self._max_unsaved:
                self._save()
            else:
                self._send_some([*islice(self._unsent, self._max_unsaved - self._unsaved)])

    def _send_some(self, unsent: Sequence[tuple[str, dict[str, Any]]]) -> None:
        stream = self.run.stream
        # After an error, it may be unknown whether the events were stored. The keys prevent a retry from storing them
        # twice.
        batch = [(stream, event, {"idempotency_key": key}) for key, event in unsent]
        positions = broadcast_batch(batch, immediate=not self.in_transaction)  # type: ignore[arg-type]
        for _, event in unsent:
            item = events.content_of(event)
            if item is not None:
                self._content.add(item)
            self._unsent.popleft()
        self._unsaved += len(unsent)
        self._changed = True
        last = positions[-1]
        if last is not None and self._position is not None:
            self._position = PagePosition(last.epoch, last.offset, self._position.stream)

    def _save(self) -> None:
        """Save the content and renew the lease. Set `lost` if the run no longer belongs to this writer."""
        began = self._clock()
        values: dict[str, Any] = {"lease_until": lease(self._lease)}
        if self._changed:
            values |= self._values()
        if self._own().update(**values):
            self._changed = False
            self._unsaved = 0
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

    # -- end ----------------------------------------------------------------------------------------------------------

    @in_namespace_of_run
    def end(self, status: Status, error: str = "") -> None:
        """Broadcast and save the complete answer, and end the attempt. Set `lost` if the run was taken or deleted.

        After an outage of the store or the database, this is retried for as long as a lease lasts. If it does not
        succeed, a server or `Run.objects.expire` ends the run.

        Args:
            status: the final status of the attempt.
            error: the error message for the user; `""` if the attempt did not fail.

        Raises:
            Exception: the error of the last try.
        """
        if self._was_stopped:
            return
        with self._lock:
            until = self._clock() + self._lease
            while not self.lost:
                try:
                    self._flush()
                    ended = self._own().update(
                        **self._values(), status=status, error=error, ended_at=Now(), lease_until=None
                    )
                    self.lost = not ended and not self._has_ended(status)
                    break
                except Exception as failure:
                    if not _may_pass(failure) or self._clock() > until:
                        raise
                    logger.warning("The run %s could not be saved; trying again: %s", self.run.pk, failure)
                    time.sleep(RETRY_DELAY)
            if self.lost:
                return
            self.run.refresh_from_db()
            try:
                self.run.announce_end()
            except Exception as failure:
                if not _may_pass(failure):
                    raise
                # Servers with readers of the run broadcast its end again (see watching.py), once the store works.
                logger.warning("The end of the run %s could not be broadcast: %s", self.run.pk, failure)

    def _has_ended(self, status: Status) -> bool:
        """Return whether an earlier try of `end`, whose outcome was unknown, has ended the attempt."""
        return Run.objects.filter(pk=self.run.pk, status=status, writer=self._writer).exists()


def begin_attempt(run: uuid.UUID | str) -> Attempt:
    """Begin to write a queued run, and return the attempt.

    After an outage of the store or the database, this is retried for as long as a lease lasts.

    Args:
        run: the id of the run.

    Raises:
        Run.DoesNotExist: there is no such run.
        RunNotQueued: another task is writing the run, or the run is completed or failed.
    """
    until = time.monotonic() + get_settings().run_lease
    attempt: Attempt | None = None
    while True:
        try:
            attempt = attempt or Attempt(Run.objects.with_id(run).get())
            attempt.begin()
        except Exception as error:
            # After an error, a transaction cannot execute further statements.
            in_transaction = connections[router.db_for_write(Run)].in_atomic_block
            if in_transaction or not _may_pass(error) or time.monotonic() > until:
                raise
            logger.warning("The run %s could not be begun; trying again: %s", run, error)
            time.sleep(RETRY_DELAY)
        else:
            return attempt


def _may_pass(error: Exception) -> bool:
    """Return whether a retry may succeed after an error. The idempotency keys prevent a second broadcast."""
    return is_outage(error) or isinstance(error, BroadcastUncertain)
