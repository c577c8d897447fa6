"""`Hub`, the object that the connections of an event loop share.

A hub receives the events of the stream store, sends the messages of each stream to the subscribers in order, and starts
repairs of gaps.
"""

import asyncio
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from reliable_cable.client_log import handshake_log
from reliable_cable.concurrency.pacing import PER_ITERATION, Pacer
from reliable_cable.concurrency.retrying import RETRY_DELAY
from reliable_cable.concurrency.tasks import BackgroundTasks, mark_retrieved
from reliable_cable.concurrency.threads import end_threads
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError
from reliable_cable.logs import logger
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Verdict, judge
from reliable_cable.stores.engine import Engine
from reliable_cable.stores.streams.base import Advanced, StreamEvent, Transient

from .catch_up import CatchUp
from .connect_limit import ConnectLimit
from .connections import Connections
from .control_bus import ControlBus
from .heartbeat import Heartbeat
from .history import HistoryReader
from .login_checks import LoginChecks
from .presence import PresenceService
from .repair import Repairs
from .session_records import SessionRecords
from .stream import HubStream, StreamObserver
from .subscriber import Subscriber
from .token_expiry import TokenExpiry

#: How long, in seconds, the opening of a stream is retried. Clients give up on a subscribe command after 10 seconds.
OPEN_TIMEOUT: Final = 8.0

#: How long, in seconds, the next batch of streams waits while another batch is being opened. During this time, streams
#: are added to the next batch.
BATCH_DELAY: Final = 0.05

#: How long, in seconds, the hub waits for the tasks of connections when it is closed.
CLOSE_TIMEOUT: Final = 1.0


class Hub:
    """The object with the streams, presence, sessions and connections of an event loop.

    Args:
        engine: the stores.
        settings: the settings of this package.
    """

    def __init__(self, engine: Engine, settings: CableSettings) -> None:
        self.engine = engine
        self.settings = settings
        #: Whether the server is about to stop, and accepts no new connections.
        self.draining = False
        self.tasks = BackgroundTasks()
        self.connections = Connections()
        self.connect_limit = ConnectLimit(settings.rate_limit("connect"), engine.buckets, self.tasks)
        self.sessions = SessionRecords(engine.sessions, engine.session_clock)
        # Pings contain the time by the stream store's clock, so that clients can send this time back as `since` in
        # history requests.
        self.heartbeat = Heartbeat(engine.stream_clock.now)
        self.logins = LoginChecks(settings.reauthenticate_interval)
        self.token_expiry = TokenExpiry(self.tasks)
        self.history = HistoryReader(engine.streams)
        self.pacer = Pacer(PER_ITERATION)
        self._streams: dict[str, HubStream] = {}
        #: The streams that the next batch opens.
        self._unopened: list[HubStream] = []
        #: The task that opens streams in batches.
        self._opener: asyncio.Task[None] | None = None
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._listener = engine.streams.listen(self.deliver)
        self.repairs = Repairs(engine.streams, self._listener, self.sessions.losses.suspect)
        self.catch_up = CatchUp(self.history, self.repairs, settings.max_pending_size)
        self.control = ControlBus(
            engine, self.connections, self.sessions, self.logins, self.tasks, self.observe, self.stop_observing
        )
        self.presence = PresenceService(engine.presence, self._send_presence)
        self.tasks.spawn(self._log_problems())

    async def _log_problems(self) -> None:
        try:
            for problem in await self.engine.streams.aproblems():
                logger.warning(problem)
        except StoreError:
            logger.warning("The stream store could not be checked. Run `manage.py cable_doctor` to check it.")

    # -- streams ------------------------------------------------------------------------------------------------------

    async def subscribe(self, name: str, subscriber: Subscriber, *, until: float | None = None) -> HubStream:
        """Open a stream and add a subscriber, which catches up from the stream's current position.

        Args:
            name: the name of the stream.
            subscriber: a subscriber in the state `OPENING`.
            until: the time, by the clock of the event loop, at which to give up. By default, this is after
                `OPEN_TIMEOUT` seconds.

        Raises:
            StoreError: the stream could not be opened.
        """
        stream = await self._open(name, until)
        stream.add(subscriber)
        if stream.repair_again:
            self.repairs.request(stream)  # an event has arrived while the stream was being opened
        return stream

    def opening(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Begin to open streams together, and keep them open until the end of the context.

        Entering the context does not wait for the streams. A call to `subscribe` in the context waits for its stream.
        If there is only one stream, entering does nothing, and `subscribe` opens the stream.
        """
        return self._opening(names) if len(names) > 1 else nullcontext()

    @contextmanager
    def _opening(self, names: Iterable[str]) -> Iterator[None]:
        streams = [self._use(name) for name in names]
        try:
            yield
        finally:
            for stream in streams:
                self._release(stream)

    def unsubscribe(self, stream: HubStream, subscriber: Subscriber) -> None:
        """Close a subscriber. If nothing else uses the stream, close the stream, too."""
        stream.remove(subscriber)
        self._release(stream)

    async def observe(self, name: str, observer: StreamObserver) -> HubStream:
        """Open a stream for an observer, which receives all stored messages and then each new message.

        Raises:
            StoreError: the stream could not be opened.
        """
        stream = await self._open(name)
        try:
            page = await self.engine.streams.aread(name, after=0, limit=0)
        except BaseException:
            self._release(stream)
            raise
        stream.observer = observer
        stream.position = StreamPosition(page.epoch, page.low - 1)
        self.repairs.request(stream)
        return stream

    def stop_observing(self, stream: HubStream) -> None:
        """Remove the observer of a stream. If nothing else uses the stream, close the stream, too."""
        stream.observer = None
        self._release(stream)

    # -- events -------------------------------------------------------------------------------------------------------

    def deliver(self, event: StreamEvent) -> None:
        """Handle an event from the listener of the stream store."""
        stream = self._streams.get(event.stream)
        if stream is None:
            return
        if isinstance(event, Transient):
            stream.send_transient(event)
        elif stream.opening is not None:
            stream.repair_again = True  # the position may have been read before this event
        elif isinstance(event, Advanced):
            self.repairs.request(stream)
            if stream.observer is not None:
                self.sessions.losses.suspect()  # the store may have failed and lost data
        elif (verdict := judge(stream.position, event.epoch, event.entry.offset)) is Verdict.NEXT:
            stream.take(event.entry, event.epoch)
        else:
            if verdict is Verdict.GAP:
                stream.keep_early(event)
            # A message whose offset is not new needs a repair, too. A store that has lost messages uses their offsets
            # again.
            self.repairs.request(stream)

    def _send_presence(self, name: str, message: str) -> None:
        stream = self._streams.get(name)
        if stream is not None:
            stream.send_presence(message)

    # -- opening and closing streams ----------------------------------------------------------------------------------

    async def _open(self, name: str, until: float | None = None) -> HubStream:
        stream = self._use(name)
        try:
            if stream.opening is not None:
                async with asyncio.timeout_at(until):
                    await asyncio.shield(stream.opening)
        except BaseException as error:
            self._release(stream)
            if isinstance(error, TimeoutError):
                raise StoreError(f"The stream {name!r} was not opened in time.") from error
            raise
        return stream

    def _use(self, name: str) -> HubStream:
        """Return a stream, and keep it open until `_release` is called. The next batch opens it if it is not open."""
        stream = self._streams.get(name)
        if stream is None:
            loop = asyncio.get_running_loop()
            stream = self._streams[name] = HubStream(name)
            stream.opening = loop.create_future()
            stream.opening.add_done_callback(mark_retrieved)
            self._unopened.append(stream)
            if self._opener is None:
                self._opener = loop.create_task(self._open_batches())
        stream.users += 1
        return stream

    async def _open_batches(self) -> None:
        """Open streams in batches. Streams that are added while a batch is being opened form the next batch."""
        try:
            while self._unopened:
                batch, self._unopened = self._unopened, []
                until = asyncio.get_running_loop().time() + OPEN_TIMEOUT
                opening = self.tasks.spawn(self._open_batch(batch, until))
                await asyncio.wait([opening], timeout=BATCH_DELAY)
        finally:
            self._opener = None

    async def _open_batch(self, streams: Sequence[HubStream], until: float) -> None:
        """Open streams together. If this fails, open them separately, because a single stream may be the cause."""
        try:
            await self._listen_to(streams, until)
        except BaseException as error:
            if isinstance(error, StoreError) and len(streams) > 1:
                for stream in streams:
                    self.tasks.spawn(self._open_batch([stream], until))
                return
            for stream in streams:
                # The stream is closed. The next caller waits for this, and then opens the stream again.
                self._remove(stream)
                if stream.opening is not None:
                    stream.opening.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for stream in streams:
            if stream.opening is not None:
                stream.opening.set_result(None)
            stream.opening = None
            if not stream.users:
                self._remove(stream)  # no caller is waiting for the stream any more

    async def _listen_to(self, streams: Sequence[HubStream], until: float) -> None:
        """Listen to streams, and read their positions. If the store fails, retry only if there is a single stream."""
        names = [stream.name for stream in streams]
        closing = [self._closing[name] for name in names if name in self._closing]
        if closing:
            await asyncio.wait(closing)
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(until):
                    await self._listen(streams)
                return
            except TimeoutError as error:
                problem = f"was not opened: its store took more than {OPEN_TIMEOUT:g} s."
                raise StoreError(f"The stream {names[0]!r} {problem}") from error
            except StoreError as error:
                if len(names) > 1 or loop.time() + RETRY_DELAY > until:
                    raise
                logger.debug("The stream %r could not be opened; trying again: %s", names[0], error)
                await asyncio.sleep(RETRY_DELAY)
                if not streams[0].users:
                    raise  # no caller is waiting for the stream any more

    async def _listen(self, streams: Sequence[HubStream]) -> None:
        """Start to receive the events of streams, and read their positions."""
        await self._listener.subscribe_many([stream.name for stream in streams])
        await self.presence.open_many([stream.name for stream in streams])
        store = self.engine.streams
        policies = {stream.name: self.settings.policy(stream.name) for stream in streams}
        kept = [stream for stream in streams if policies[stream.name].history_size]
        # The lineage, which changes when the store may have lost data, is read before the positions. So if a stream
        # does not exist, it has not existed since this lineage began.
        lineages = await store.alineages([stream.name for stream in kept]) if kept else []
        positions = await store.apositions([stream.name for stream in kept]) if kept else []
        for stream, position, lineage in zip(kept, positions, lineages, strict=True):
            stream.position, stream.lineage = position, lineage

    def _release(self, stream: HubStream) -> None:
        stream.users -= 1
        # While a stream is being opened, it cannot be closed. `_open_batch` removes it afterwards.
        if stream.users == 0 and stream.opening is None:
            self._remove(stream)

    def _remove(self, stream: HubStream) -> None:
        if self._streams.get(stream.name) is stream:
            del self._streams[stream.name]
            self._closing[stream.name] = asyncio.get_running_loop().create_task(self._stop_listening(stream.name))

    async def _stop_listening(self, name: str) -> None:
        try:
            for close in (self.presence.close, self._listener.unsubscribe):
                try:
                    await close(name)
                except Exception:
                    logger.exception("The stream %r could not be closed.", name)
        finally:
            if self._closing.get(name) is asyncio.current_task():
                del self._closing[name]

    # -- shutdown -----------------------------------------------------------------------------------------------------

    async def drain(self, duration: float) -> None:
        """Refuse new connections, close all connections, and wait until they have ended.

        Args:
            duration: the time, in seconds, over which the closing of the connections is spread, so that not all clients
                reconnect at the same time.
        """
        self.draining = True
        handshake_log.report(ended=True)
        connections = self.connections.all()
        logger.info("Draining %d connections.", len(connections))
        await asyncio.gather(
            *(each.drain(random.uniform(0, duration)) for each in connections)  # noqa: S311 - spreads load, no secret
        )
        await self.connections.wait_closed()

    def close_connections(self) -> None:
        """Start to close all connections, each after its queued commands. Their clients reconnect."""
        for connection in self.connections.all():
            self.tasks.spawn(connection.drain(0))

    async def aclose(self) -> None:
        """Close all streams, and release the stores' resources. All connections must already have ended.

        This waits up to `CLOSE_TIMEOUT` seconds for the last tasks of the connections.
        """
        pending = [*self.tasks.pending, *self._closing.values()]
        if pending:
            await asyncio.wait(pending, timeout=CLOSE_TIMEOUT)
        await self.logins.stop()
        await self.sessions.stop()
        await self.presence.stop()
        await self._listener.close()
        await self.engine.aclose()
        # A test database cannot be dropped while threads of handlers or stores have open database connections.
        end_threads()
