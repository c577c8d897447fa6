"""Detects that several processes have members, although each process stores presence in its own memory."""

from reliable_cable.concurrency.tasks import BackgroundTasks
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.exceptions import BroadcastError, StoreError
from reliable_cable.logs import logger
from reliable_cable.protocol import control
from reliable_cable.protocol.control import UnsharedPresence
from reliable_cable.stores.engine import Engine
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.memory import MemoryStreamStore


class UnsharedPresenceNotice:
    """Logs a warning once if another process has members that the clients of this process do not see.

    Each process announces its first member on the control bus. There are two exceptions. If streams are in memory, too,
    the control bus does not connect processes. If `HANDLER_THREADS` is 0, the announcement would be a part of the
    caller's transaction, for example in a test.

    Args:
        engine: the stores.
        tasks: the background tasks of this event loop.
    """

    def __init__(self, engine: Engine, tasks: BackgroundTasks) -> None:
        self._engine = engine
        self._tasks = tasks
        self._began = engine.session_clock.moment()
        #: Whether the next join of a member must be announced.
        self._to_announce = (
            isinstance(engine.presence, MemoryPresenceStore)
            and not isinstance(engine.streams, MemoryStreamStore)
            and engine.streams.settings.handler_threads > 0
        )
        #: The incarnation of the presence store of this process; None before the first member has joined.
        self._own: str | None = None
        self._reported = False

    def member_joined(self) -> None:
        """Announce the first member of this process."""
        if self._to_announce:
            self._to_announce = False
            self._own = self._engine.presence.info(CONTROL_STREAM, records=False).incarnation
            self._tasks.spawn(self._announce(self._own))

    async def _announce(self, incarnation: str) -> None:
        clock = self._engine.session_clock
        try:
            await clock.ready()
            text = control.encode_unshared_presence(UnsharedPresence(incarnation, clock.now()))
            await self._engine.streams.aappend([(CONTROL_STREAM, Message(text))])
        except (BroadcastError, StoreError):
            self._to_announce = True  # the next join repeats the announcement

    def receive(self, message: UnsharedPresence) -> None:
        """Handle an announcement, which this process or another one has sent."""
        # An announcement from before the start of this process may come from a process that this one has replaced.
        if (
            self._reported
            or self._own in (None, message.incarnation)
            or message.at < self._engine.session_clock.at(self._began)
        ):
            return
        self._reported = True
        logger.warning(
            "Another process has members, too, but presence is in the memory of each process: clients see only the "
            "members of their own process. Set RELIABLE_CABLE['REDIS_URL'] to share presence. This is logged once."
        )
