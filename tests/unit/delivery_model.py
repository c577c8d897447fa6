"""A model of the frames that clients must be sent: histories, requests, and the state of each client."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reliable_cable import Channel, action
from reliable_cable.conf import CableSettings
from reliable_cable.connection.stream_ids import stream_alias
from reliable_cable.exceptions import StoreError

from .hubs import UnreliableStore
from .wire import identifier

#: The setting `MAX_PENDING_SIZE`.
LIMIT = 4000
STREAMS = ("a", "b")
#: Two identifiers that share a stream, and the streams that they start.
PARAMS = {identifier("Room", streams=streams): streams for streams in (("a",), ("a", "b"))}
IDENTIFIERS = tuple(PARAMS)
EVERYTHING = 10**9


class Room(Channel, abstract=True):
    async def subscribed(self) -> None:
        for stream in self.params["streams"]:
            self.stream_from(stream)

    @action
    async def start(self, data: Any) -> None:
        self.stream_from(data["stream"])
        self.transmit({"started": data["stream"]})

    @action
    async def stop(self, data: Any) -> None:
        self.stop_stream_from(data["stream"])
        self.transmit({"stopped": data["stream"]})


class Store(UnreliableStore):
    """A store that fails while `broken` is set. Its clock stands still until the model changes `now`."""

    def __init__(self, settings: CableSettings) -> None:
        super().__init__(settings)
        self.now = 1_000_000.0
        self.clock = lambda: self.now

    def epoch(self, name: str) -> str:
        """Return the epoch of a stream."""
        stream = self._streams.get(name)
        return "" if stream is None else stream.epoch

    def lose_newest(self, name: str, count: int) -> int:
        """Lose up to `count` of a stream's newest messages. Return how many were lost."""
        stream = self._streams.get(name)
        lost = 0
        while stream is not None and stream.kept and lost < count:
            stream.kept.pop()
            stream.tail -= 1
            lost += 1
        return lost

    async def _run(self, call: Callable[[], Any]) -> Any:
        if self.broken:
            await asyncio.sleep(0)
            raise StoreError("broken")
        return await super()._run(call)


# -- what was broadcast ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Stored:
    """A message that the store accepted."""

    epoch: str
    offset: int
    exclude: str
    time: float
    #: Whether the store lost the message afterwards. A subscriber may have received it before the loss.
    vanished: bool = False


class History:
    """All messages of a stream that the store ever accepted, in order."""

    def __init__(self) -> None:
        self.messages: list[Stored] = []
        self.index: dict[tuple[str, int], int] = {}
        #: Whether messages may have been lost: trimmed, forgotten or vanished.
        self.damaged = False
        #: Whether the next append must begin a new epoch.
        self.rewound = False
        #: Returns the epoch of the stream in the store.
        self.epoch: Callable[[], str] = lambda: ""

    def add(self, message: Stored) -> None:
        self.index[message.epoch, message.offset] = len(self.messages)
        self.messages.append(message)

    def after(self, position: tuple[str, int]) -> int | None:
        """Return the index of the first message after a position; None if there never was such a position."""
        epoch, offset = position
        if offset == 0:
            return self.index.get((epoch, 1))
        found = self.index.get(position)
        return None if found is None else found + 1


# -- what a client sees ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Request:
    """A history request of a client."""

    streams: Mapping[str, tuple[str, int]]
    since: float | None
    #: Whether it names no other positions than those of the last messages that the client received.
    honest: bool = True
    #: The streams for which it names an epoch that has ended.
    outdated: tuple[str, ...] = ()
    #: Whether it is the first request of its subscription after a restore.
    restored: bool = False
    #: Whether it came with the subscribe.
    initial: bool = False
    #: The streams of the subscription when the request was sent. For a request that came with the subscribe, these are
    #: the streams at the confirmation.
    tracks: dict[str, Track] = field(default_factory=dict)
    #: The streams that actions have stopped since the request was sent. The answers of these actions may come before
    #: the answer to the request.
    stopped: set[str] = field(default_factory=set)
    #: The streams of which an entry was received in response to the request.
    begun: set[str] = field(default_factory=set)

    def position(self, stream: str, identifier: str, stream_id: str | None = None) -> tuple[str, int] | None:
        """Return the position that the request names for a stream; None if it names none."""
        if self.restored:
            return self.streams.get(stream_id or stream)
        return self.streams.get(stream_alias(stream, identifier)) or self.streams.get(stream)

    def body(self) -> dict[str, Any]:
        """Return the request as it is sent."""
        streams = {name: {"epoch": epoch, "offset": offset} for name, (epoch, offset) in self.streams.items()}
        return {"streams": streams, **({} if self.since is None else {"since": self.since})}


@dataclass(slots=True)
class Track:
    """The progress of a client in a stream, under one identifier."""

    #: The index from which on all messages are due, if the client has received no message.
    floor: int
    #: The index of the next message that is due; None before the first message.
    due: int | None = None
    epoch: str | None = None
    #: Whether the client was told of a loss since the last message.
    told: bool = False
    stream_id: str | None = None


class Subscribed:
    """The state of one identifier of a client, as the client knows it."""

    def __init__(self) -> None:
        #: "absent", "pending", "active", "leaving" (until the server has handled an unsubscribe, or a subscribe that
        #: replaces a restored subscription), or "away" (the connection was lost, and the session may be restored).
        self.state = "absent"
        self.confirmable = False
        #: How many repeats of the subscribe were sent, minus two for each confirmation of a repeat. The server confirms
        #: every second repeat.
        self.repeats = 0
        self.requests: deque[Request] = deque()
        #: All requests since the subscribe. If the client has received no message, any of them may have moved the
        #: position from which a restore starts.
        self.sent: list[Request] = []
        self.tracks: dict[str, Track] = {}
        #: How many calls of the actions `start` and `stop` have not been answered, by stream.
        self.starting: Counter[str] = Counter()
        self.stopping: Counter[str] = Counter()
        #: Streams that the subscription may or may not have: the client cannot know, because an answer was lost.
        self.uncertain: set[str] = set()
        self.stream_ids: set[str] = set()
        #: Whether the server is waiting for the first history request after a restore.
        self.restored = False
        #: Whether the subscription was confirmed on this connection, so that another subscribe is ignored.
        self.confirmed = False
        #: The request of a subscribe that replaces a restored subscription.
        self.refresh: tuple[Request | None] | None = None
        self.notice = False
        #: Whether a request that is not `honest` was rejected, or was pending at a rejection, after the last confirmed
        #: request.
        self.refusable = False
        self.last_transient: dict[str, int] = {}
        #: The request of a subscribe that was sent in the state "leaving".
        self.again: tuple[Request | None] | None = None
        self.markers: deque[str] = deque()
