"""Announcements inside one process: from whoever appends, in any thread, to the listeners on their event loops."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from .base import StreamEvent, StreamListener

logger = logging.getLogger("reliable_cable")


class BusListener(StreamListener):
    """Hands a bus's events to `deliver` on the event loop on which it was made; events that pile up go in one turn."""

    def __init__(self, bus: Bus, deliver: Callable[[StreamEvent], None]) -> None:
        self._bus = bus
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._streams: set[str] = set()
        self._pending: deque[StreamEvent] = deque()
        self._scheduled = False
        self._lock = threading.Lock()

    async def subscribe(self, stream: str) -> None:
        """Announce this stream's events from now on."""
        self._streams.add(stream)
        self._bus.add(stream, self)

    async def unsubscribe(self, stream: str) -> None:
        """Announce this stream's events no more, not even those on their way."""
        self._streams.discard(stream)
        self._bus.remove(stream, self)

    async def close(self) -> None:
        """Leave the bus."""
        for stream in list(self._streams):
            await self.unsubscribe(stream)

    def push(self, events: Iterable[StreamEvent]) -> None:
        """Take events, from any thread, for the loop's next turn.

        Raises:
            RuntimeError: the loop is closed.
        """
        with self._lock:
            self._pending.extend(events)
            if not self._scheduled:
                self._loop.call_soon_threadsafe(self._drain)
                self._scheduled = True

    def _drain(self) -> None:
        with self._lock:
            events, self._pending = self._pending, deque()
            self._scheduled = False
        for event in events:
            if event.stream in self._streams:
                try:
                    self._deliver(event)
                except Exception:
                    logger.exception("A stream event could not be delivered: %s", event.stream)


class _Ears:
    """Who listens to what, in one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_stream: dict[str, set[BusListener]] = {}


class Bus:
    """Carries one store's events to its listeners. All methods may be called from any thread."""

    def __init__(self) -> None:
        # By process id: a forked child must neither call into its parent's loops nor wait for its locks.
        self._processes: dict[int, _Ears] = {}

    @property
    def _ears(self) -> _Ears:
        pid = os.getpid()
        return self._processes.get(pid) or self._processes.setdefault(pid, _Ears())

    def add(self, stream: str, listener: BusListener) -> None:
        """Let a listener hear a stream."""
        ears = self._ears
        with ears.lock:
            ears.by_stream.setdefault(stream, set()).add(listener)

    def remove(self, stream: str, listener: BusListener) -> None:
        """Let a listener hear a stream no more."""
        ears = self._ears
        with ears.lock:
            listeners = ears.by_stream.get(stream, set())
            listeners.discard(listener)
            if not listeners:
                ears.by_stream.pop(stream, None)

    def publish(self, events: Sequence[StreamEvent]) -> None:
        """Announce events, in this order. A listener whose loop is closed is forgotten."""
        ears = self._ears
        batches: dict[BusListener, list[StreamEvent]] = {}
        with ears.lock:
            for event in events:
                for listener in ears.by_stream.get(event.stream, ()):
                    batches.setdefault(listener, []).append(event)
        for listener, batch in batches.items():
            try:
                listener.push(batch)
            except RuntimeError:
                self._forget(listener)

    def _forget(self, gone: BusListener) -> None:
        ears = self._ears
        with ears.lock:
            for stream in [stream for stream, listeners in ears.by_stream.items() if gone in listeners]:
                ears.by_stream[stream].discard(gone)
                if not ears.by_stream[stream]:
                    del ears.by_stream[stream]
