"""One subscription of one connection: its streams, what of them was missed, and its presence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from reliable_cable.channel import Channel
from reliable_cable.exceptions import StoreError
from reliable_cable.hub.fanout import Reader
from reliable_cable.hub.repair import RETRY_DELAY
from reliable_cable.protocol import messages
from reliable_cable.protocol.commands import PresenceClaim
from reliable_cable.protocol.constants import MessageType
from reliable_cable.protocol.positions import HistoryRequest, StreamPosition
from reliable_cable.protocol.recovery import StreamPage, recoverable, requested_position
from reliable_cable.reply import PresenceJoin, Reply, StreamStart

from .presence import SubscriptionPresence, blank_record
from .stream_ids import stream_alias

if TYPE_CHECKING:
    from reliable_cable.hub.hub import Hub

    from .connection import CableSession

T = TypeVar("T")
logger = logging.getLogger("reliable_cable")


class _Place(Reader):
    """A reader, why its stream was started, and where the subscription first stood in it.

    A restore begins there if the client received nothing; None before the stream is open.
    """

    __slots__ = ("first", "start")

    start: StreamStart
    first: StreamPosition | None


class Subscription:
    """What one identifier of one connection receives.

    Args:
        session: the connection's.
        identifier: as the client wrote it.
        channel: the application's object.
    """

    __slots__ = (
        "_left_at",
        "_presence",
        "_replay",
        "_replays",
        "channel",
        "confirmed",
        "deadline",
        "identifier",
        "readers",
        "restorable",
        "session",
    )

    def __init__(self, session: CableSession, identifier: str, channel: Channel) -> None:
        self.session = session
        self.identifier = identifier
        self.channel = channel
        #: Whether the client was sent a confirmation on this connection.
        self.confirmed = False
        self._presence: SubscriptionPresence | None = None
        #: Runs out if a restored identifier's `history` does not come.
        self.deadline: asyncio.TimerHandle | None = None
        self.readers: dict[str, _Place] = {}
        #: The latest replay, and all that have not ended: each waits for the one before.
        self._replay: asyncio.Task[None] | None = None
        self._replays: tuple[asyncio.Task[None], ...] = ()
        #: When a restored session was left, until the client has what it missed.
        self._left_at: float | None = None
        #: Whether a restore would find it where the client stands: not while a first request of its is being looked up.
        self.restorable = True

    @property
    def hub(self) -> Hub:
        """The session's."""
        return self.session.hub

    @property
    def presence(self) -> SubscriptionPresence:
        """Its presence; made when it is first asked for."""
        if self._presence is None:
            self._presence = SubscriptionPresence(self)
        return self._presence

    # -- streams ----------------------------------------------------------------------------------------------------

    @property
    def presence_stream(self) -> str | None:
        """The stream that presence is kept on: the marked one, or the first."""
        marked = next((name for name, reader in self.readers.items() if reader.start.presence), None)
        return marked or next(iter(self.readers), None)

    @property
    def whisper_stream(self) -> str | None:
        """The stream that the client's whispers go to."""
        return next((name for name, reader in self.readers.items() if reader.start.whisper), None)

    async def apply_streams(self, reply: Reply, request: HistoryRequest | None = None) -> None:
        """Start and stop the streams that a handler asked for; new ones are behind until `settle` or `replay`.

        Raises:
            StoreError: a stream could not be opened; those before it are.
        """
        if not reply.streams:
            return
        presence_stream = self.presence_stream
        for op in reply.streams:
            if isinstance(op, StreamStart):
                await self._start(op, request)
            else:
                for name in list(self.readers) if op.name is None else [op.name]:
                    self._stop(name)
        if presence_stream is not None and self.presence_stream != presence_stream:
            await self.presence.move(presence_stream)
        self._mark_presence()

    async def _start(self, start: StreamStart, request: HistoryRequest | None, stream_id: str | None = None) -> None:
        known = self.readers.get(start.name)
        if known is not None:
            known.start = start
            return
        if stream_id is None:
            stream_id = self.session.stream_ids.claim(start.name, self.identifier, request)
        sids = self.session.sids
        reader = _Place(self.session.outbox, self.identifier, stream_id, sids, self._lost, behind=self.settle)
        reader.start, reader.first = start, None
        self.readers[start.name] = reader
        try:
            await self.hub.add(reader, start.name)
        except BaseException:
            self._stop(start.name)
            raise
        if self.session.closed:
            # The connection went while the stream was being opened, and took its subscriptions along.
            self.hub.remove(reader)
        # A restored one was confirmed on another connection.
        reader.announced = self.confirmed or any(other.announced for other in self.readers.values())
        reader.first = reader.position

    def _stop(self, name: str) -> None:
        reader = self.readers.pop(name, None)
        if reader is not None:
            self.hub.remove(reader)
            self.session.stream_ids.release(name, self.identifier)

    def _mark_presence(self) -> None:
        stream = self.presence_stream
        for name, reader in self.readers.items():
            reader.presence = self.session.extended and name == stream

    def _lost(self) -> None:
        """Messages to a live reader are missing for good: say so, in the way that the client understands (10)."""
        if self.session.extended:
            self._acknowledge(MessageType.REJECT_HISTORY)
        else:
            self.session.restart()

    def _acknowledge(self, type_: MessageType) -> None:
        self.session.outbox.push(messages.acknowledgement(type_, self.identifier))

    def end(self) -> None:
        """Leave all streams; whatever is under way ends. Presence stays."""
        self.cancel_deadline()
        for replay in self._replays:
            replay.cancel()
        for name in list(self.readers):
            reader = self.readers[name]
            self.hub.remove(reader)
            self.session.stream_ids.release(name, self.identifier)

    def release(self) -> None:
        """The connection went: leave all streams; who joined presence may come back."""
        self.end()
        if self._presence is not None:
            self._presence.release()

    def let_go(self) -> None:
        """Refer to nothing that refers to this: the connection has gone, and nobody asks any more."""
        self.readers = {}
        self._presence = None

    def cancel_deadline(self) -> None:
        """The history of a restored identifier was asked for."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    # -- history ----------------------------------------------------------------------------------------------------

    def confirm(self) -> None:
        """Send the confirmation."""
        self.confirmed = True
        self._acknowledge(MessageType.CONFIRM_SUBSCRIPTION)
        self.announce()

    def announce(self) -> None:
        """Let the client hear what has no position, presence events for one: it knows the subscription."""
        for reader in self.readers.values():
            reader.announced = True

    def settle(self, request: HistoryRequest | None = None, joins: Sequence[PresenceClaim | PresenceJoin] = ()) -> None:
        """Send what is missing, acknowledge history if it was asked for, join presence, then go live."""
        if self.deadline is not None and request is None:
            return  # restored: the client's own request settles all
        readers = list(self.readers.values())
        idle = self._replay is None or self._replay.done()
        if idle and request is None and not joins and not any(self.hub.is_behind(reader) for reader in readers):
            for reader in readers:
                self.hub.go_live(reader)
            return
        for reader in readers:
            reader.live = reader.live and request is None
        previous = self._replay
        if joins:
            self.presence.join_later(joins)
        self._replay = self.hub.spawn(self._run(previous, request))
        self._replays += (self._replay,)
        self._replay.add_done_callback(self._ended)

    def _ended(self, replay: asyncio.Task[None]) -> None:
        self._replays = tuple(other for other in self._replays if other is not replay)
        if self._replay is replay:
            self._replay = None

    async def _run(self, previous: asyncio.Task[None] | None, request: HistoryRequest | None) -> None:
        try:
            if previous is not None and not previous.done():
                await asyncio.wait([previous])
                for reader in self.readers.values():
                    # The one before let them go live; a replay moves them back.
                    reader.live = reader.live and request is None
            if request is not None:
                await self.hub.turns.take()
                await self._send_history(request)
            if self._left_at is not None:
                if self._presence is not None:
                    await self._presence.take_over(self._left_at)
                self.announce()
                self._left_at = None
            if self._presence is not None:
                await self._presence.join_pending()
            # The join reaches the client before live messages do.
            await asyncio.sleep(0)
            await self._catch_up()
            self.session.changed()
        except Exception:
            # Live messages would now leave a gap: the client has to come back.
            logger.exception("The history of %s could not be sent.", self.identifier)
            self.session.restart()

    async def _send_history(self, request: HistoryRequest) -> None:
        readers = [reader for name, reader in self.readers.items() if self._kept(name)]
        complete = False
        try:
            pages = await self._patiently(partial(self._rewind, request))
            self.restorable = True
            if pages is not None:
                complete = await self._send_pages(readers, pages)
        except Exception:
            logger.exception("The history of %s could not be read.", self.identifier)
        if not complete:
            for reader in self.readers.values():
                if reader.stream is not None and reader.stream.position is not None:
                    reader.position = reader.first = reader.stream.position
        self.restorable = True
        self._acknowledge(MessageType.CONFIRM_HISTORY if complete else MessageType.REJECT_HISTORY)

    def _kept(self, name: str) -> bool:
        return self.session.settings.policy(name).history_size > 0

    async def _rewind(self, request: HistoryRequest) -> dict[Reader, StreamPage] | None:
        """Put every reader where the client stands; return each one's first page, None if one has lost its place."""
        store = self.hub.engine.streams
        pages: dict[Reader, StreamPage] = {}
        starts: dict[str, StreamPosition] = {}
        restored = self._left_at is not None
        for name, reader in list(self.readers.items()):
            if not self._kept(name):
                continue
            alias = stream_alias(name, self.identifier)
            known = reader.stream.position if reader.stream is not None else None
            # In a restored session another id's position is not this reader's (7).
            ids = (reader.stream_id or name,) if restored else (alias, name)
            position = requested_position(request, ids)
            if position is None and restored:
                position = reader.first
            elif position is None and request.since is None:
                continue
            if position is None:
                assert request.since is not None  # noqa: S101 - for the type checker
                offset = await store.aoffset_since(name, self._server_since(request.since))
                if offset is None:
                    return None
                page = await self.hub.pages.read(name, StreamPosition("", offset), known)
                position = StreamPosition(page.epoch, offset)
            else:
                page = await self.hub.pages.read(name, position, known)
            if not recoverable(position, page):
                return None
            starts[name] = position
            pages[reader] = page
        for name, position in starts.items():
            if name in self.readers:
                self.readers[name].position = self.readers[name].first = position
        return pages

    def _server_since(self, since: float) -> float:
        """Return a client's `since`, moved back if the client's clock is ahead of the store's (7)."""
        now = self.hub.engine.stream_clock.now()
        return since if since <= now else now - self.session.ping_interval

    async def _send_pages(self, readers: Sequence[Reader], pages: dict[Reader, StreamPage]) -> bool:
        complete = True
        while behind := [reader for reader in readers if self.hub.is_behind(reader)]:
            for reader in behind:
                send = partial(self.hub.send_page, reader, pages.pop(reader, None))
                complete = await self._patiently(send) and complete
        return complete

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read until the store can be read: what is out of reach is not lost, and live messages wait there, too."""
        failed = False
        while True:
            try:
                return await read()
            except StoreError as error:
                log = logger.debug if failed else logger.warning
                log("A stream of %s could not be read; trying again: %s", self.identifier, error)
                failed = True
                await asyncio.sleep(RETRY_DELAY)

    async def _catch_up(self) -> None:
        """Bring all readers to where the hub stands, and let them go live together."""
        while True:
            readers = list(self.readers.values())
            behind = [reader for reader in readers if not reader.live and self.hub.is_behind(reader)]
            if not behind:
                break
            for reader in behind:
                if not await self._patiently(partial(self.hub.send_page, reader)):
                    self._lost()
        for reader in readers:
            self.hub.go_live(reader)

    # -- restore ----------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Return what a restore needs, as JSON values."""
        return {
            "identifier": self.identifier,
            "state": self.channel.dump_state(),
            "streams": [
                {
                    "name": name,
                    "id": reader.stream_id,
                    "first": [reader.first.epoch, reader.first.offset],
                    "whisper": reader.start.whisper,
                    "presence": reader.start.presence,
                }
                for name, reader in self.readers.items()
                if reader.first is not None
            ],
            "left_at": self._left_at,
            **(self._presence.record() if self._presence else blank_record(self.session.sid, self.identifier)),
        }

    async def restore(self, data: Mapping[str, Any], left_at: float) -> None:
        """Take the streams and the member back; the readers stay behind until the client asks for its history."""
        for stream in data["streams"]:
            name = stream["name"]
            self.session.stream_ids.take(name, self.identifier, stream["id"])
            start = StreamStart(name, stream["whisper"], stream["presence"])
            await self._start(start, None, stream["id"])
            self.readers[name].first = StreamPosition(*stream["first"])
        self._mark_presence()
        if data["member"] is not None or data["watching"] is not None:
            self.presence.restore(data)
        self._left_at = left_at
