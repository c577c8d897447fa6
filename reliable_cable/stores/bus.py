"""An event bus within a process. Any thread can publish events. They are delivered on the listeners' event loops."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from typing import Generic, Protocol, TypeVar

from reliable_cable.logs import logger

from .base import Listener


class Event(Protocol):
    """An event that can be published on a bus. It belongs to a stream."""

    @property
    def stream(self) -> str:
        """The name of the stream."""


E = TypeVar("E", bound=Event)


class BusListener(Listener, Generic[E]):
    """Calls `deliver` with the events of a bus, on the event loop on which the listener was created.

    All pending events are delivered in one callback of the event loop.
    """

    def __init__(self, bus: Bus[E], deliver: Callable[[E], None]) -> None:
        self._bus = bus
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        #: An empty context for deliveries, so that receivers do not see the context variables of a publisher.
        self._context = Context()
        #: The streams whose events are announced.
        self.streams: set[str] = set()
        self._pending: deque[E] = deque()
        self._scheduled = False
        self._lock = threading.Lock()

    async def subscribe(self, stream: str) -> None:
        """Start announcing the events of a stream."""
        self.streams.add(stream)
        self._bus.add(stream, self)

    async def unsubscribe(self, stream: str) -> None:
        """Stop announcing the events of a stream. Pending events are dropped."""
        self.streams.discard(stream)
        self._bus.remove(stream, self)

    async def close(self) -> None:
        """Unsubscribe from all streams."""
        for stream in list(self.streams):
            await self.unsubscribe(stream)

    def push(self, events: Iterable[E]) -> None:
        """Schedule the delivery of events. Any thread may call this.

        Raises:
            RuntimeError: the event loop is closed.
        """
        with self._lock:
            self._pending.extend(events)
            if not self._scheduled:
                self._loop.call_soon_threadsafe(self._drain, context=self._context)
                self._scheduled = True

    def _drain(self) -> None:
        with self._lock:
            events, self._pending = self._pending, deque()
            self._scheduled = False
        for event in events:
            if event.stream in self.streams:
                try:
                    self._deliver(event)
                except Exception:
                    logger.exception("An event of the stream %r could not be delivered.", event.stream)


class _Listeners(Generic[E]):
    """The listeners of one process, by stream."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_stream: dict[str, set[BusListener[E]]] = {}


class Bus(Generic[E]):
    """Delivers the events of one store to its listeners. All methods may be called from any thread."""

    def __init__(self) -> None:
        #: The listeners, by process id. A forked child must not use the event loops and locks of its parent.
        self._processes: dict[int, _Listeners[E]] = {}

    @property
    def _listeners(self) -> _Listeners[E]:
        pid = os.getpid()
        return self._processes.get(pid) or self._processes.setdefault(pid, _Listeners())

    def add(self, stream: str, listener: BusListener[E]) -> None:
        """Subscribe a listener to a stream."""
        listeners = self._listeners
        with listeners.lock:
            listeners.by_stream.setdefault(stream, set()).add(listener)

    def remove(self, stream: str, listener: BusListener[E]) -> None:
        """Unsubscribe a listener from a stream."""
        listeners = self._listeners
        with listeners.lock:
            subscribed = listeners.by_stream.get(stream, set())
            subscribed.discard(listener)
            if not subscribed:
                listeners.by_stream.pop(stream, None)

    def publish(self, events: Sequence[E]) -> None:
        """Announce events in the given order. A listener whose event loop is closed is unsubscribed."""
        listeners = self._listeners
        batches: dict[BusListener[E], list[E]] = {}
        with listeners.lock:
            for event in events:
                for listener in listeners.by_stream.get(event.stream, ()):
                    batches.setdefault(listener, []).append(event)
        for listener, batch in batches.items():
            try:
                listener.push(batch)
            except RuntimeError:
                for stream in listener.streams.copy():
                    self.remove(stream, listener)
