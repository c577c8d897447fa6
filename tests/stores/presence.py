"""Helpers for the tests of presence stores and of the presence service."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from django.dispatch import Signal

from reliable_cable.concurrency.threads import submit_store
from reliable_cable.hub.presence import PresenceService
from reliable_cable.signals import presence_joined, presence_left
from reliable_cable.stores.presence.base import PresenceEvent, PresenceMissed, PresenceStore
from reliable_cable.stores.presence.model import ModelPresenceStore

if TYPE_CHECKING:
    from .conftest import Clock

#: The PRESENCE_TTL of the stores under test, in seconds.
TTL = 15.0
KEPT = 300.0


def joined(id_: str, info: Any = None, stream: str = "s") -> PresenceEvent:
    return PresenceEvent(stream, "join", id_, info)


def left(id_: str, info: Any = None, stream: str = "s") -> PresenceEvent:
    return PresenceEvent(stream, "leave", id_, info)


def elapse(
    store: PresenceStore, clock: Clock, seconds: float = TTL, refreshed: Collection[str] = ()
) -> list[PresenceEvent]:
    """Let time pass while a server calls `expire` regularly, so that there is no outage. Return the leave events.

    Args:
        store: the store.
        clock: the clock of the store.
        seconds: how long, in seconds.
        refreshed: the sessions of the stream `s` that are refreshed meanwhile.
    """
    events: list[PresenceEvent] = []
    end = clock() + seconds
    while clock() < end:
        clock.advance(min(TTL / 3, end - clock()))
        if refreshed:
            store.refresh({"s": refreshed})
        events += store.expire()
    return events


def check_an_upgrade(store: PresenceStore, clock: Clock, forget_search: Callable[[], int]) -> None:
    """Check that members of an earlier release leave only after a time in which they could be refreshed.

    Args:
        store: the store, which has no members.
        clock: the clock of the store.
        forget_search: deletes the record of the last search, and returns how many records it has deleted. Servers of
            earlier releases do not record the first join as the beginning of the time without a search.
    """
    store.join("s", "here", "1")
    store.join("s", "killed", "2")
    assert forget_search() == 1
    clock.advance(TTL)
    assert store.expire() == []
    store.refresh({"s": ["here"]})
    assert elapse(store, clock, TTL - 1) == []
    store.refresh({"s": ["here"]})
    assert elapse(store, clock, 1) == [left("2")]


marks = itertools.count()


class Recorder:
    """Collects the events that a store announces for some streams."""

    def __init__(self, store: PresenceStore, deliver: Callable[[PresenceEvent], None] | None = None) -> None:
        self._events: list[PresenceEvent] = []
        self._store = store
        self._id = ""
        self._tap = deliver or self._events.append
        self._mark = asyncio.Event()
        self.listener = store.listen(self._deliver)

    def _deliver(self, event: PresenceEvent | PresenceMissed) -> None:
        assert isinstance(event, PresenceEvent)
        if event.stream != "marks":
            self._tap(event)
        elif event.id == self._id:
            self._mark.set()

    async def events(self) -> list[PresenceEvent]:
        """Return the events since the last call."""
        # Events arrive in order, so when the join of a new id in the stream `marks` arrives, all earlier events have
        # arrived.
        self._id = str(next(marks))
        self._mark.clear()
        self._store.join("marks", "mark", self._id)
        await asyncio.wait_for(self._mark.wait(), 10)
        events = list(self._events)
        self._events.clear()
        return events


async def listen(
    store: PresenceStore, *streams: str, deliver: Callable[[PresenceEvent], None] | None = None
) -> Recorder:
    """Return a recorder of the events of streams."""
    recorder = Recorder(store, deliver)
    for stream in ("marks", *streams):
        await recorder.listener.subscribe(stream)
    return recorder


async def settle() -> None:
    """Run all callbacks that are due."""
    for _ in range(5):
        await asyncio.sleep(0)


async def heard(store: PresenceStore) -> list[PresenceEvent]:
    """Return a list to which the events of the stream `s` are added."""
    events: list[PresenceEvent] = []
    await store.listen(lambda event: events.append(cast(PresenceEvent, event))).subscribe("s")
    return events


class Rounds:
    """Replaces `asyncio.sleep`, so that a test decides when the next round of the presence service takes place."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._next: asyncio.Future[None] | None = None

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._next = asyncio.get_running_loop().create_future()
        await self._next

    async def next(self) -> None:
        """End the service's sleep, and wait until the next round is done."""
        await settle()
        assert self._next is not None
        self._next.set_result(None)
        await settle()


@contextmanager
def receiving(signal: Signal, receiver: Callable[..., object]) -> Iterator[None]:
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


@contextmanager
def gathered(service: PresenceService) -> Iterator[Callable[[], Awaitable[list[tuple[str, str]]]]]:
    """Collect presence signals. Yield a function that waits until none is pending, and returns all types and ids."""
    got: list[tuple[str, str]] = []

    def take(**kwargs: Any) -> None:
        got.append(("join" if kwargs["signal"] is presence_joined else "leave", kwargs["id"]))

    async def all_of_them() -> list[tuple[str, str]]:
        while service._sending is not None:
            await asyncio.wait([service._sending])
        return got

    with receiving(presence_joined, take), receiving(presence_left, take):
        yield all_of_them


def _in_store_thread(name: str) -> Callable[..., Any]:
    method = getattr(ModelPresenceStore, name)

    def call(self: ModelPresenceStore, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name.startswith("cable-"):
            return method(self, *args, **kwargs)
        return submit_store(partial(method, self, *args, **kwargs)).result()

    return call


class ThreadedPresenceStore(ModelPresenceStore):
    """A store in the database whose sync methods run in store threads, so that async tests can call them.

    The threads also close their database connections, which the threads of tests do not.
    """

    join_all = _in_store_thread("join_all")
    leave = _in_store_thread("leave")
    shorten = _in_store_thread("shorten")
    refresh = _in_store_thread("refresh")
    expire = _in_store_thread("expire")
    info = _in_store_thread("info")
    left_within = _in_store_thread("left_within")
    prune = _in_store_thread("prune")
