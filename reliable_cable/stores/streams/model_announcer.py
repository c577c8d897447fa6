"""Announces events of the model store to other processes, in a background thread."""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Final

from django.db import connections

from reliable_cable.concurrency.database_connections import with_kept_connections
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.concurrency.threads import submit_alone
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import described
from reliable_cable.logs import logger
from reliable_cable.stores.database.notify import NotificationSender, supports_notify

from .base import Transient
from .model_notices import Notice, NoticeCodec, NoticedEvent, StoredTransient

#: The minimum time, in seconds, between the beginnings of two transactions with notifications. Events that happen
#: meanwhile share the next one.
MIN_INTERVAL: Final = 0.005
#: The minimum pause between two transactions, as a multiple of the duration of the first one. So if the database is
#: slow, more events share a transaction.
PAUSE_FACTOR: Final = 2.0
#: The maximum pause, in seconds, between two transactions with notifications.
MAX_PAUSE: Final = 0.05
#: The maximum number of whispers that are stored in one transaction.
WHISPERS_PER_TRANSACTION: Final = 500
#: The maximum total size of the pending events, and that of the pending whispers, in characters of their data. If the
#: events exceed it, they are replaced by a request to poll. If the whispers exceed it, the oldest are dropped.
MAX_PENDING: Final = 4 * 1024 * 1024

#: The messages that are logged, with the cause, when a transaction fails.
WHISPERS_LOST: Final = "Whispers could not be passed to other processes, and are lost for their clients"
NOT_NOTIFIED: Final = (
    "Other processes could not be notified of new messages. They find these when they poll the database"
)


class _Pending:
    """The pending events of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: list[NoticedEvent] = []
        self.whispers: deque[Transient] = deque()
        self.probes: list[str] = []
        #: Whether receivers must poll now, because there were too many events to announce each of them.
        self.look = False
        #: Whether receivers must poll when the next notification is sent, because earlier ones were not sent.
        self.missed = False
        #: The total size of the data of `events`, and of `whispers`.
        self.size = self.whisper_size = 0
        #: Whether the thread is running or was asked to run.
        self.active = False


class Announcer:
    """Stores whispers, and notifies other processes of new events, in a thread with its own database connection.

    Its methods do not block. Their errors are only logged: other processes also poll the database, and whispers need
    not arrive. A forked child has its own thread.

    Args:
        settings: the settings; `notify`, `database` and `poll_interval` are used.
        origin: a function that returns the name of the store in this process.
        store: a function that stores whispers in a transaction, and returns the ids of their rows; None if `whisper` is
            never called.
        topic: the beginning of all notifications. Each topic has its own thread, so that topics do not wait for each
            other.
    """

    def __init__(
        self,
        settings: CableSettings,
        origin: Callable[[], str],
        store: Callable[[Sequence[Transient]], Sequence[int]] | None = None,
        *,
        topic: str = "",
    ) -> None:
        self._alias = settings.database
        self._threads = settings.handler_threads > 0
        self._poll_interval = settings.poll_interval
        self._settings = settings
        self._origin = origin
        self._store = store
        self.topic = topic
        self._codec = NoticeCodec(settings, topic)
        self._sender = NotificationSender(settings.database)
        self._processes: dict[int, _Pending] = {}
        #: The messages that were logged since the transaction that they are about last succeeded.
        self._logged: set[str] = set()

    @cached_property
    def notifies(self) -> bool:
        """Whether processes with this database can notify each other."""
        return supports_notify(self._settings)

    def decode(self, payload: str) -> Notice:
        """Return the notice in a payload."""
        return self._codec.decode(payload)

    def announce(self, events: Iterable[NoticedEvent]) -> None:
        """Notify the other processes of events, if the database supports notifications."""
        if self.notifies:
            pending = self._pending
            with pending.lock:
                for event in events:
                    self._add(pending, event)
            self._start()

    def whisper(self, message: Transient) -> None:
        """Store a whisper, and notify the other processes. If `handler_threads` is 0, do nothing."""
        if not self._threads:
            return
        pending = self._pending
        with pending.lock:
            pending.whispers.append(message)
            pending.whisper_size += len(message.data)
            while pending.whisper_size > MAX_PENDING:
                pending.whisper_size -= len(pending.whispers.popleft().data)
        self._start()

    def probe(self, payload: str) -> None:
        """Send a notification with this payload."""
        pending = self._pending
        with pending.lock:
            pending.probes.append(payload)
        self._start()

    @property
    def _pending(self) -> _Pending:
        pid = os.getpid()
        return self._processes.get(pid) or self._processes.setdefault(pid, _Pending())

    def _add(self, pending: _Pending, event: NoticedEvent) -> None:
        pending.events.append(event)
        pending.size += _size(event)
        if pending.size > MAX_PENDING:
            pending.events.clear()
            pending.size = 0
            pending.look = True

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        pending = self._pending
        with pending.lock:
            if pending.active:
                return
            pending.active = True
        try:
            submit_alone(f"announcer{self.topic}", partial(with_kept_connections, self._work, pending))
        except RuntimeError as error:
            with pending.lock:
                pending.active = False
            logger.debug("Events are not announced, because no thread can be started: %s", error)

    def _work(self, pending: _Pending) -> None:
        """Send pending probes, store pending whispers, and announce pending events, until nothing is pending."""
        while True:
            began = time.monotonic()
            with pending.lock:
                whispers = [
                    pending.whispers.popleft() for _ in range(min(len(pending.whispers), WHISPERS_PER_TRANSACTION))
                ]
                pending.whisper_size -= sum(len(whisper.data) for whisper in whispers)
                events, pending.events, pending.size = pending.events, [], 0
                probes, pending.probes = pending.probes, []
                look, pending.look = pending.look, False
                if not (whispers or events or probes or look):
                    pending.active = False
                    return
            if probes and self.notifies:
                # The probes are sent before the whispers are stored. Otherwise, if storing is slow or fails, the probes
                # would be missing, and the receiver would suspect a connection pooler.
                self._notify(pending, [], probes, look=False)
            events = [*events, *self._stored(whispers)]
            if self.notifies:
                self._notify(pending, events, [], look)
            time.sleep(self._pause(time.monotonic() - began))

    def _pause(self, took: float) -> float:
        """Return how long to wait after a transaction that has taken `took` seconds."""
        if not self.notifies:
            return self._poll_interval
        return min(max(MIN_INTERVAL - took, PAUSE_FACTOR * took), MAX_PAUSE)

    def _stored(self, whispers: Sequence[Transient]) -> list[NoticedEvent]:
        """Store whispers, and return the events to announce; an empty list if the whispers could not be stored."""
        if not whispers or self._store is None:
            return []
        try:
            keys = self._store(whispers)
        except Exception as error:
            self._failed(WHISPERS_LOST, error)
            return []
        self._logged.discard(WHISPERS_LOST)
        return list(map(StoredTransient, keys, whispers))

    def _notify(self, pending: _Pending, events: Sequence[NoticedEvent], probes: Sequence[str], look: bool) -> None:
        # After an error, the receivers are only told to poll, because a failover may have lost the messages of the
        # events.
        missed = Notice(self._origin(), look=True)
        notice = missed if pending.missed else Notice(self._origin(), events, look)
        payloads = [*probes, *self._codec.encode(notice)]
        if not payloads:
            return
        try:
            try:
                self._sender.send(payloads)
            except Exception as error:
                if not is_outage(error):
                    raise
                # The connection may have been closed by the server since it was last used.
                self._disconnect()
                self._sender.send([*probes, *self._codec.encode(missed)])
        except Exception as error:
            pending.missed = True
            self._failed(NOT_NOTIFIED, error)
        else:
            pending.missed = False
            self._logged.discard(NOT_NOTIFIED)

    def _failed(self, message: str, error: Exception) -> None:
        """Log a message and its cause, unless it was logged since the last success. Close the connection."""
        if message not in self._logged:
            logger.warning("%s: %s", message, described(error), exc_info=not is_outage(error))
        self._logged.add(message)
        self._disconnect()

    def _disconnect(self) -> None:
        with contextlib.suppress(Exception):
            connections[self._alias].close()


def _size(event: NoticedEvent) -> int:
    match event:
        case StoredTransient(_, message):
            return len(message.data)
        case _:
            entry = getattr(event, "entry", None)
            return 64 if entry is None else len(entry.data)
