"""The stream store in the memory of a process, for tests, or for a single process that may lose its history."""

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from typing import TypeVar

from reliable_cable.conf import CableSettings, StreamPolicy
from reliable_cable.protocol.positions import StreamPosition, later_epoch
from reliable_cable.protocol.recovery import Entry, StreamPage
from reliable_cable.stores.bus import Bus, BusListener

from .base import (
    LONG_AGO,
    YOUNG_SIZE,
    YOUNG_TIME,
    Advanced,
    Message,
    Published,
    StreamEvent,
    StreamListener,
    StreamStore,
    Transient,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _StoredEntry:
    entry: Entry
    created: float
    key: str

    @property
    def size(self) -> int:
        return len(self.entry.data.encode(errors="surrogatepass"))


@dataclass(slots=True)
class _Stream:
    """The state of a stream.

    `kept` has the entries within the history size and TTL. `young` has older entries that only followers can read.
    """

    epoch: str = field(default_factory=lambda: secrets.token_hex(8))
    tail: int = 0
    tail_at: float = 0
    #: The time of the newest entry that was moved from `kept` to `young`; None if no entry was moved.
    trimmed_at: float | None = None
    #: The time of the newest entry of the stream's earlier epochs; 0 if there was no such entry.
    forgotten_at: float = 0
    kept: deque[_StoredEntry] = field(default_factory=deque)
    #: The offsets of the messages in `kept`, by idempotency key.
    keys: dict[str, int] = field(default_factory=dict)
    young: deque[_StoredEntry] = field(default_factory=deque)
    young_size: int = 0

    @property
    def low(self) -> int:
        return self.tail - len(self.kept) + 1

    def next_epoch(self, now: float) -> "_Stream":
        """Return the state of this stream in a new epoch, without entries."""
        forgotten_at = self.tail_at if self.tail else self.forgotten_at
        return _Stream(later_epoch(secrets.token_hex(8)), tail_at=max(now, self.tail_at), forgotten_at=forgotten_at)

    def trim(self, policy: StreamPolicy, now: float) -> int:
        """Move entries beyond the history size or TTL to `young`, and delete those that are no longer young.

        Return the number of deleted entries.
        """
        while self.kept and (len(self.kept) > policy.history_size or self.kept[0].created <= now - policy.history_ttl):
            old = self.kept.popleft()
            self.trimmed_at = old.created
            if old.key:
                del self.keys[old.key]
            self.young.append(old)
            self.young_size += old.size
        before = len(self.young)
        while self.young and (self.young_size > YOUNG_SIZE or self.young[0].created <= now - YOUNG_TIME):
            self.young_size -= self.young.popleft().size
        return before - len(self.young)


class MemoryStreamListener(BusListener[StreamEvent], StreamListener):
    """Receives the events of the streams in this process."""


class MemoryStreamStore(StreamStore):
    """Stores streams in the memory of this process. Other processes do not receive their messages."""

    place = "memory of this process (broadcasts of other processes are not received)"

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings, clock=clock)
        self._bus: Bus[StreamEvent] = Bus()
        self._lock = threading.Lock()
        #: The time at which `forget_all` was last called; 0 if never. Messages from before this time are gone.
        self._began = 0.0
        self._streams: dict[str, _Stream] = {}

    def append(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages, announce them, and return their positions. Either all messages are stored, or none."""
        names = {name for name, _ in items}
        self.require_history(names)
        now = self.clock()
        positions: list[StreamPosition] = []
        events: list[StreamEvent] = []
        with self._lock:
            for name in names:
                self._streams.setdefault(name, _Stream()).trim(self.settings.policy(name), now)
            for name, message in items:
                stream = self._streams[name]
                offset = stream.keys.get(message.idempotency_key)
                if offset is None:
                    offset = stream.tail = stream.tail + 1
                    stream.tail_at = max(now, stream.tail_at)
                    entry = Entry(offset, message.data, message.exclude)
                    stream.kept.append(_StoredEntry(entry, stream.tail_at, message.idempotency_key))
                    if message.idempotency_key:
                        stream.keys[message.idempotency_key] = offset
                    events.append(Published(name, stream.epoch, entry))
                positions.append(StreamPosition(stream.epoch, offset))
            for name in names:
                self._streams[name].trim(self.settings.policy(name), now)
            # The events are published under the lock, so that listeners receive the offsets in order.
            self._bus.publish(events)
        return positions

    def publish_transient(self, stream: str, message: Message) -> None:
        """Announce a message without storing it."""
        self._bus.publish([Transient(stream, message.data, message.exclude)])

    def whisper(self, stream: str, message: Message) -> None:
        """Announce a client's whisper."""
        self._bus.publish([Transient(stream, message.data, message.exclude, whisper=True)])

    def read(
        self,
        stream: str,
        *,
        after: int,
        limit: int,
        max_size: int | None = None,
        known: StreamPosition | None = None,
        following: bool = False,
    ) -> StreamPage:
        """Return up to `limit` stored entries whose offsets are greater than `after`, and the stream's state."""
        with self._lock:
            state = self._trimmed(stream)
            if state is None:
                return StreamPage("", 0, 1)
            low = state.low - len(state.young) if following else state.low
            readable = chain(state.young, state.kept) if following else state.kept
            first = min(max(after + 1, low), state.tail + 1) - low
            entries = tuple(stored.entry for stored in islice(readable, first, first + max(limit, 0)))
            if max_size is not None:
                before = accumulate((len(entry.data) for entry in entries), initial=0)
                entries = tuple(entry for entry, size in zip(entries, before, strict=False) if size <= max_size)
            return StreamPage(state.epoch, state.tail, low, entries)

    def offset_since(self, stream: str, since: float) -> int | None:
        """Return the offset of the last message before a time; None if some of the messages since then are gone."""
        with self._lock:
            if LONG_AGO < since < self._began:
                return None
            state = self._trimmed(stream)
            if state is None:
                deleted_after = self.deleted_after(stream)
                return None if deleted_after is not None and since < self.clock() - deleted_after else 0
            if LONG_AGO < since <= state.forgotten_at:
                return None
            if state.trimmed_at is not None and state.trimmed_at >= since:
                return None
            for stored in state.kept:
                if stored.created >= since:
                    return stored.entry.offset - 1
            return state.tail

    def forget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history and end its epoch."""
        with self._lock:
            state = self._streams.get(stream)
            if state is not None and epoch in ("", state.epoch):
                self._streams[stream] = state.next_epoch(self.clock())
                self._bus.publish([Advanced(stream)])

    def forget_all(self) -> int:
        """End the epochs of all streams, and return the number of streams."""
        with self._lock:
            names = list(self._streams)
            now = self._began = self.clock()
            self._streams = {name: stream.next_epoch(now) for name, stream in self._streams.items()}
            self._bus.publish([Advanced(name) for name in names])
        return len(names)

    def prune(self, *, limit: int = 1000) -> int:
        """Delete all entries that no reader can read any more, and all idle streams. `limit` has no effect."""
        with self._lock:
            now = self.clock()
            count = sum(stream.trim(self.settings.policy(name), now) for name, stream in self._streams.items())
            idle = [name for name, stream in self._streams.items() if self._is_idle(name, stream, now)]
            for name in idle:
                del self._streams[name]
            return count + len(idle)

    def listen(self, deliver: Callable[[StreamEvent], None]) -> StreamListener:
        """Return a listener that calls `deliver` with events on the running event loop."""
        return MemoryStreamListener(self._bus, deliver)

    def _is_idle(self, name: str, stream: _Stream, now: float) -> bool:
        return not stream.kept and stream.tail_at <= now - self.settings.policy(name).history_meta_ttl

    def _trimmed(self, name: str) -> _Stream | None:
        stream = self._streams.get(name)
        if stream is not None:
            stream.trim(self.settings.policy(name), self.clock())
        return stream

    async def _run(self, call: Callable[[], T]) -> T:
        result = call()
        # Without this pause, a task that broadcasts in a loop would never be suspended, and no other task could run.
        await asyncio.sleep(0)
        return result
