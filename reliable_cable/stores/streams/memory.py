"""The stream store of one process's memory: for tests, and for a single process that may forget."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TypeVar

from reliable_cable.conf import CableSettings, StreamPolicy
from reliable_cable.exceptions import BroadcastError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage

from .base import (
    IDLE_STREAM_TTL,
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
from .bus import Bus, BusListener

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kept:
    entry: Entry
    created: float
    key: str

    @property
    def size(self) -> int:
        return len(self.entry.data.encode(errors="surrogatepass"))


@dataclass(slots=True)
class _Stream:
    """A stream. `kept` has the entries within its size and TTL; `young` has those before them, for followers."""

    epoch: str = field(default_factory=lambda: secrets.token_hex(8))
    tail: int = 0
    tail_at: float = 0
    #: When the newest entry was made that is no longer kept.
    trimmed_at: float | None = None
    kept: deque[_Kept] = field(default_factory=deque)
    keys: dict[str, int] = field(default_factory=dict)
    young: deque[_Kept] = field(default_factory=deque)
    young_size: int = 0

    @property
    def low(self) -> int:
        return self.tail - len(self.kept) + 1

    def trim(self, policy: StreamPolicy, now: float) -> int:
        """Drop entries that are past the stream's size or TTL and not young; return how many were dropped."""
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


class MemoryStreamStore(StreamStore):
    """Keeps streams in this process only: other processes neither see nor hear them."""

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings, clock=clock)
        self._bus = Bus()
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}

    def append(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages, all or none, in this order, and announce them; return their positions."""
        names = {name for name, _ in items}
        for name in names:
            if not self.settings.policy(name).history_size:
                raise BroadcastError(f"The stream {name!r} keeps no history; publish to it as a transient message.")
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
                    stream.kept.append(_Kept(entry, stream.tail_at, message.idempotency_key))
                    if message.idempotency_key:
                        stream.keys[message.idempotency_key] = offset
                    events.append(Published(name, stream.epoch, offset, message.data, message.exclude))
                positions.append(StreamPosition(stream.epoch, offset))
            for name in names:
                self._streams[name].trim(self.settings.policy(name), now)
            # Under the lock, so that listeners hear of offsets in order.
            self._bus.publish(events)
        return positions

    def publish_transient(self, stream: str, message: Message) -> None:
        """Announce a message that is not kept."""
        self._bus.publish([Transient(stream, message.data, message.exclude)])

    def whisper(self, stream: str, message: Message) -> None:
        """Announce a client's whisper."""
        self.publish_transient(stream, message)

    def read(
        self, stream: str, *, after: int, limit: int, known: StreamPosition | None = None, following: bool = False
    ) -> StreamPage:
        """Return up to `limit` kept entries with greater offsets than `after`, and the stream's state."""
        with self._lock:
            found = self._fresh(stream)
            if found is None:
                return StreamPage("", 0, 1)
            low = found.low - len(found.young) if following else found.low
            offered = chain(found.young, found.kept) if following else found.kept
            first = min(max(after + 1, low), found.tail + 1) - low
            entries = tuple(kept.entry for kept in islice(offered, first, first + max(limit, 0)))
            return StreamPage(found.epoch, found.tail, low, entries)

    def offset_since(self, stream: str, since: float) -> int | None:
        """Return the offset after which lies everything appended at or after `since`; None if some of it is gone."""
        with self._lock:
            found = self._fresh(stream)
            if found is None:
                return 0
            if found.trimmed_at is not None and found.trimmed_at >= since:
                return None
            for kept in found.kept:
                if kept.created >= since:
                    return kept.entry.offset - 1
            return found.tail

    def forget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history and end its epoch."""
        with self._lock:
            found = self._streams.get(stream)
            if found is not None and epoch in ("", found.epoch):
                del self._streams[stream]
                self._bus.publish([Advanced(stream)])

    def forget_all(self) -> int:
        """End the epoch of every stream; return how many there were."""
        with self._lock:
            names = list(self._streams)
            self._streams.clear()
            self._bus.publish([Advanced(name) for name in names])
        return len(names)

    def prune(self, *, limit: int = 1000) -> int:
        """Delete what is past its stream's size or TTL, and streams that are long idle; here all of it at once."""
        with self._lock:
            now = self.clock()
            count = sum(stream.trim(self.settings.policy(name), now) for name, stream in self._streams.items())
            idle = [n for n, s in self._streams.items() if not s.kept and s.tail_at <= now - IDLE_STREAM_TTL]
            for name in idle:
                del self._streams[name]
            return count + len(idle)

    def listen(self, deliver: Callable[[StreamEvent], None]) -> StreamListener:
        """Return a listener that hands events to `deliver`, on the event loop that calls this."""
        return BusListener(self._bus, deliver)

    def _fresh(self, name: str) -> _Stream | None:
        stream = self._streams.get(name)
        if stream is not None:
            stream.trim(self.settings.policy(name), self.clock())
        return stream

    async def _run(self, call: Callable[[], T]) -> T:
        result = call()
        # Otherwise nothing suspends the caller, and a loop of broadcasts would keep other tasks from running.
        await asyncio.sleep(0)
        return result
