"""The hub of one process: takes what the store announces, in order, repairs gaps, and lets readers catch up.

What the hub delivers goes to *live* readers (readers.py); the others are *behind*: nothing is kept for them, what they
miss is read from the store (PROTOCOL.md, 4 and 5).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from reliable_cable.concurrency.pacing import TURN, Turns
from reliable_cable.concurrency.threads import end_threads
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError
from reliable_cable.protocol.frames import Frame
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamEntry, StreamPage, Verdict, advance, judge
from reliable_cable.stores.engine import Engine
from reliable_cable.stores.streams.base import Advanced, Published, StreamEvent, Transient

from .control_bus import Control
from .fanout import Reader
from .heartbeat import Heartbeat
from .history import Pages
from .presence import PresenceService
from .repair import RETRY_DELAY, Repairs
from .session_records import SessionRecords
from .stream import Ear, HubStream

if TYPE_CHECKING:
    from reliable_cable.connection.connection import CableSession

logger = logging.getLogger("reliable_cable")

#: Characters of history that are written to a connection at once.
BATCH_SIZE = 64 * 1024

#: Seconds to wait after each repair in a row that did not bring a stream to the position of a subscriber's page.
CATCH_UP_DELAYS = (0.0, 0.05, 0.2, 0.5)

#: Seconds for which the opening of a stream is tried, then the client is sent away to come back: it would give up a
#: subscribe after 10, and close its channel for good.
OPEN_PATIENCE = 8.0

#: Seconds for which a hub that is closed waits for what its connections began.
CLOSE_PATIENCE = 1.0


class Hub:
    """All streams, presence and sessions that the connections of one event loop share.

    Args:
        engine: the stores.
        settings: in force when it was made.
    """

    def __init__(self, engine: Engine, settings: CableSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.draining = False
        #: Connections by session id, extended and base ones.
        self.connections: dict[str, CableSession] = {}
        #: The connection that has, or continues, a session, by each of its present and former ids.
        self.holders: dict[str, CableSession] = {}
        self.presence = PresenceService(engine.presence, self._send_presence)
        self.sessions = SessionRecords(engine.sessions, engine.session_clock)
        # Clients send the time of a ping back as `since`.
        self.heartbeat = Heartbeat(engine.stream_clock.now)
        self.pages = Pages(engine.streams)
        self.turns = Turns(TURN)
        self._streams: dict[str, HubStream] = {}
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._listener = engine.streams.listen(self.deliver)
        self.repairs = Repairs(engine.streams, self._listener, self.sessions.suspect)
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Future[None] | None = None
        self.control = Control(self)
        self.spawn(self._warn())

    async def _warn(self) -> None:
        try:
            for problem in await self.engine.streams.aproblems():
                logger.warning("%s", problem)
        except StoreError:
            logger.warning("The stream store could not be asked how it is; `manage.py cable_doctor` does so, too.")

    # -- readers ------------------------------------------------------------------------------------------------

    async def add(self, reader: Reader, stream: str) -> None:
        """Put a reader on a stream, behind, at the stream's present end.

        Raises:
            StoreError: the stream's position could not be read.
        """
        found = await self._open(stream)
        reader.stream = found
        if found.position is not None:
            reader.position = found.position
        found.group(reader).readers[reader] = None

    def remove(self, reader: Reader) -> None:
        """Take a reader off its stream; whatever is under way for it ends."""
        found, reader.stream, reader.live = reader.stream, None, False
        reader.let_go()
        if found is None:
            return
        found.drop(reader)
        self._release(found)

    async def follow(self, stream: str, ear: Ear) -> HubStream:
        """Let an ear of this process's own have a stream, from the oldest message that is kept, until `unfollow`.

        Raises:
            StoreError: the stream could not be opened.
        """
        found = await self._open(stream)
        try:
            page = await self.engine.streams.aread(stream, after=0, limit=0)
        except BaseException:
            self._release(found)
            raise
        found.ear = ear
        found.position = StreamPosition(page.epoch, page.low - 1)
        self.repairs.request(found)
        return found

    def unfollow(self, found: HubStream) -> None:
        """Let the ear have the stream no more."""
        found.ear = None
        self._release(found)

    def go_live(self, reader: Reader) -> None:
        """Let a reader that stands where the hub stands have what comes next."""
        # One that is live already may still be sent what the hub has delivered to others.
        if not reader.live and reader.stream is not None and reader.stream.position is not None:
            # The very object, by which a message on its way knows who stands where it comes next.
            reader.position = reader.stream.position
            reader.live = True
        for frame in reader.let_go():
            reader.outbox.push(frame)

    def is_behind(self, reader: Reader) -> bool:
        """Whether there is something to be read for a reader before it can go live."""
        return reader.stream is not None and reader.position != reader.stream.position

    async def send_page(self, reader: Reader, page: StreamPage | None = None) -> bool:
        """Send what a reader misses, as far as one page goes, when the socket takes it, and wait until it did.

        Args:
            reader: not live.
            page: read after the reader's position, if that was done already.

        Returns:
            False if messages are missing for good: the reader then stands where the hub stands.
        """
        async with reader.outbox.turn:
            return await self._send_page(reader, page)

    async def _send_page(self, reader: Reader, page: StreamPage | None) -> bool:
        await reader.outbox.drained()
        found = reader.stream
        if found is None or found.position is None:
            return True
        # What the hub delivers while a page is being read need not be in it.
        asked = found.position
        if page is None:
            page = await self.pages.read(found.name, reader.position, asked, following=True)
        if reader.stream is not found:
            return True
        for delay in CATCH_UP_DELAYS:
            if _agree(reader.position, page, asked) and page.epoch == found.position.epoch:
                break
            await self.repairs.finish(found)
            await asyncio.sleep(delay)
            if reader.stream is not found:
                return True
            asked = found.position
            page = await self.pages.read(found.name, reader.position, asked, following=True)
            if reader.stream is not found:
                return True
        else:
            logger.warning("A subscriber could not catch up with the stream %r, and is told of a loss.", found.name)
            reader.position = found.position
            return False
        step = advance(reader.position, page, upto=found.position.offset)
        if step.lost:
            reader.position = found.position
            return False
        group = found.group(reader)
        # A long history must not make its reader too slow.
        most = min(BATCH_SIZE, self.settings.max_pending_size // 2)
        frames: list[Frame] = []
        size = 0
        for entry in step.entries:
            if entry.exclude and entry.exclude in reader.sids:
                continue
            frame = self.pages.encode(group, found.name, page.epoch, entry)
            if frames and size + len(frame) > most:
                reader.outbox.push_all(frames)
                reader.position = StreamPosition(page.epoch, entry.offset - 1)
                frames, size = [], 0
                await reader.outbox.drained()
                if reader.stream is not found:
                    return True
            frames.append(frame)
            size += len(frame)
        reader.outbox.push_all(frames)
        reader.position = step.position
        await reader.outbox.drained()
        return True

    # -- events -------------------------------------------------------------------------------------------------

    def deliver(self, event: StreamEvent) -> None:
        """Take an event from the store's listener."""
        found = self._streams.get(event.stream)
        if found is None:
            return
        if isinstance(event, Transient):
            found.send_transient(event)
        elif found.position is None:
            pass  # being opened: its position will be read after this
        elif isinstance(event, Advanced):
            self.repairs.request(found)
            if found.ear is not None:
                self.sessions.suspect()  # the store may have been away, and be back with other data
        else:
            self._deliver_published(found, found.position, event)

    def _deliver_published(self, found: HubStream, position: StreamPosition, event: Published) -> None:
        verdict = judge(position, event.epoch, event.offset)
        if verdict is Verdict.NEXT:
            found.send(StreamEntry(event.offset, event.data, event.exclude), event.epoch)
            return
        if verdict is Verdict.GAP:
            found.keep_early(event)
        # Also after a repeat: a store that has lost messages announces offsets that were used before.
        self.repairs.request(found)

    def _send_presence(self, stream: str, message: str) -> None:
        found = self._streams.get(stream)
        if found is not None:
            found.send_presence(message)

    # -- opening and closing ------------------------------------------------------------------------------------

    async def _open(self, name: str) -> HubStream:
        found = self._streams.get(name)
        if found is None:
            found = self._streams[name] = HubStream(name)
            found.opening = asyncio.get_running_loop().create_task(self._start(found))
        found.uses += 1
        try:
            if found.opening is not None:
                await asyncio.shield(found.opening)
        except BaseException:
            self._release(found)
            raise
        return found

    async def _start(self, found: HubStream) -> None:
        closing = self._closing.get(found.name)
        if closing is not None:
            await asyncio.wait([closing])
        loop = asyncio.get_running_loop()
        until = loop.time() + OPEN_PATIENCE
        try:
            while True:
                try:
                    async with asyncio.timeout_at(until):
                        found.position = await self._subscribe(found.name)
                    break
                except TimeoutError as error:
                    raise StoreError(
                        f"The stream {found.name!r} was not opened: its store took more than {OPEN_PATIENCE:g} s."
                    ) from error
                except StoreError as error:
                    if loop.time() + RETRY_DELAY > until:
                        raise
                    logger.debug("The stream %r could not be opened; trying again: %s", found.name, error)
                    await asyncio.sleep(RETRY_DELAY)
                    if not found.uses:
                        raise  # nobody waits any more
            found.opening = None
        except BaseException:
            # Whoever comes next tries anew, after this one has left.
            if self._streams.get(found.name) is found:
                del self._streams[found.name]
                self._leave(found.name)
            raise

    async def _subscribe(self, name: str) -> StreamPosition:
        await self._listener.subscribe(name)
        await self.presence.open(name)
        if self.settings.policy(name).history_size:
            return await self.engine.streams.aposition(name)
        return StreamPosition("", 0)

    def _release(self, found: HubStream) -> None:
        found.uses -= 1
        if found.uses == 0 and self._streams.get(found.name) is found:
            del self._streams[found.name]
            self._leave(found.name)

    def _leave(self, name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._unsubscribe(name))
        self._closing[name] = task
        task.add_done_callback(partial(self._closed, name))

    async def _unsubscribe(self, name: str) -> None:
        await self.presence.close(name)
        await self._listener.unsubscribe(name)

    def _closed(self, name: str, task: asyncio.Task[None]) -> None:
        if self._closing.get(name) is task:
            del self._closing[name]
        if not task.cancelled() and task.exception() is not None:
            logger.error("The stream %r could not be left.", name, exc_info=task.exception())

    # -- the end ------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Leave all streams, and close what this event loop has of the stores; connections are to have ended before.

        What they left to be done is waited for, `CLOSE_PATIENCE` at most.
        """
        pending = [*self._tasks, *self._closing.values()]
        if pending:
            await asyncio.wait(pending, timeout=CLOSE_PATIENCE)
        await self.sessions.stop()
        await self.presence.stop()
        await self._listener.close()
        await self.engine.aclose()
        # Open database connections of these threads would keep a test database from being dropped.
        end_threads()

    # -- connections --------------------------------------------------------------------------------------------

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something of a connection's that may outlive it, and keep a reference to it."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def register(self, session: CableSession) -> None:
        """A connection begins; one that had its session, or a former one, here is superseded: never two alive."""
        for sid in session.sids:
            other = self.holders.get(sid)
            if other is not None and other is not session:
                other.supersede()
            self.holders[sid] = session
        self.connections[session.sid] = session

    def forget(self, session: CableSession) -> None:
        """A connection has ended."""
        self.connections.pop(session.sid, None)
        for sid in session.sids:
            if self.holders.get(sid) is session:
                del self.holders[sid]
        if not self.connections and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def idle(self) -> None:
        """Wait until every connection has ended."""
        while self.connections:
            if self._idle is None or self._idle.done():
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)


def _agree(reader: StreamPosition, page: StreamPage, hub: StreamPosition) -> bool:
    """Return whether a page can be sent to a subscriber now.

    It cannot if the hub has not yet seen the page's epoch, or messages that the client received on another server. It
    cannot either if the page is older than the messages that the hub has delivered.

    Args:
        reader: the subscriber's position.
        page: what was read.
        hub: the hub's position when the read began.
    """
    ahead = reader.epoch == page.epoch and reader.offset > hub.offset
    return page.epoch == hub.epoch and page.tail >= hub.offset and not ahead
