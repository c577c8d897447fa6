"""One connection: how it begins, what it reads and writes, and how it ends. What commands do is in execution.py."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import ProtocolError
from reliable_cable.hub.hub import Hub
from reliable_cable.identity import Identity
from reliable_cable.protocol import commands, messages
from reliable_cable.protocol.constants import CLOSE_NORMAL, DisconnectReason, Subprotocol
from reliable_cable.servers.base import Transport
from reliable_cable.stores.sessions.base import SessionRecord

from .commands import Execution
from .outbox import Outbox
from .restore import make_record, restore
from .stream_ids import StreamIds
from .subscription import Subscription

logger = logging.getLogger("reliable_cable")

#: Broken frames after which a client is sent away.
MAX_BAD_FRAMES = 20
#: Seconds that a restored identifier's `history` may take (PROTOCOL.md, 5).
HISTORY_DEADLINE = 10.0
#: The most bytes that a character can take.
_LONGEST = 4
#: Seconds that a farewell may take to be written.
CLOSE_TIMEOUT = 2.0


class CableSession:
    """The server's side of one connection.

    Args:
        hub: of this event loop.
        consumer: what channels see as `self.connection`.
        subprotocol: what was agreed on.
        identity: whose connection it is.
        authenticated_at: when the client was authenticated, by the monotonic clock of `Engine.session_clock`.
        ping_interval: seconds.
        connection: what is known of the server's transport.
    """

    __slots__ = (
        "_authenticated_at",
        "_bad_frames",
        "_closing",
        "_connection",
        "_identity",
        "_last_pong",
        "_listening",
        "announcing",
        "closed",
        "consumer",
        "execution",
        "extended",
        "hub",
        "outbox",
        "ping_due",
        "ping_interval",
        "resumable",
        "sids",
        "stream_ids",
        "subscriptions",
    )

    def __init__(
        self,
        hub: Hub,
        consumer: Any,
        *,
        subprotocol: Subprotocol,
        identity: Identity,
        authenticated_at: float,
        ping_interval: float,
        connection: Transport,
    ) -> None:
        self.hub = hub
        self.consumer = consumer
        self.extended = subprotocol.extended
        self._authenticated_at = authenticated_at
        self._identity = tuple(identity.items())
        #: Every id by which the session is known: its own, and those of the sessions that it continues, latest first.
        self.sids: tuple[str, ...] = (secrets.token_urlsafe(18),)
        #: Whether it took a session over, and its announcement has not been heard yet (control.py).
        self.announcing = False
        self.closed = False
        self.outbox = Outbox(
            connection.send,
            limit=hub.settings.max_pending_size,
            overflow=self._too_slow,
            write=connection.write,
            form=connection.form,
            unsent=connection.unsent,
        )
        self.subscriptions: dict[str, Subscription] = {}
        self._connection = connection
        self.ping_interval = ping_interval
        self.ping_due = 0
        self._last_pong: float | None = None
        self._bad_frames = 0
        self.execution = Execution(self)
        self.stream_ids = StreamIds(extended=subprotocol.extended)
        self.resumable = self.extended and hub.sessions.enabled
        self._closing = False
        self._listening = False

    @property
    def settings(self) -> CableSettings:
        """The hub's."""
        return self.hub.settings

    @property
    def identity(self) -> Identity:
        """Whose connection it is."""
        return dict(self._identity)

    @property
    def authenticated(self) -> float:
        """When the client was authenticated, by the session store's clock, according to its newest measurement."""
        return self.hub.engine.session_clock.at(self._authenticated_at)

    @property
    def sid(self) -> str:
        """The session's id."""
        return self.sids[0]

    @property
    def former(self) -> tuple[str, ...]:
        """The ids of the sessions that this one continues, the latest first."""
        return self.sids[1:]

    @former.setter
    def former(self, sids: tuple[str, ...]) -> None:
        self.sids = (self.sid, *sids)

    @property
    def ending(self) -> bool:
        """Whether the connection has ended or is about to."""
        return self._closing or self.closed

    # -- beginning --------------------------------------------------------------------------------------------------

    async def start(self, sid: str | None) -> None:
        """Welcome the client, after restoring the session `sid` if it may have that."""
        loop = asyncio.get_running_loop()
        self._listening = True
        self.hub.control.hold()
        self._connection.attach(self.outbox.pause, self.outbox.resume)
        transmissions: list[str] = []
        restored = await restore(self, sid, transmissions) if sid and self.resumable else None
        # From here to the welcome nothing is awaited: what is revoked or superseded now finds the connection.
        self.hub.register(self)
        if self.hub.control.revoked(self):
            return
        if restored is not None and restored.alive:
            self.hub.control.announce(restored.sid, self)
        if restored is None and self.resumable:
            self.hub.sessions.add(self)
            self.changed()
        self.outbox.push(messages.welcome(self.sid, None if restored is None else restored.identifiers))
        for text in transmissions:
            self.outbox.push(text)
        for subscription in self.subscriptions.values():
            subscription.deadline = loop.call_later(HISTORY_DEADLINE, self.restart)
        self.hub.heartbeat.add(self)

    def record(self) -> SessionRecord:
        """Return what a restore needs, as of now."""
        return make_record(self)

    def changed(self) -> None:
        """What a restore needs has changed."""
        if self.resumable:
            self.hub.sessions.changed(self)

    async def save(self) -> bool:
        """Save the session's record before the client sees the effect of a change.

        Returns:
            Whether the client may see the effect. If False, the change could not be saved, and the client is
            disconnected and forgets its session. Otherwise a restore on another server would bring back the older
            state.
        """
        if not self.resumable or await self.hub.sessions.save(self):
            return True
        logger.warning("A session could not be saved; its client is disconnected and subscribes anew.")
        self.disconnect(DisconnectReason.REMOTE, reconnect=True)
        return False

    # -- reading ----------------------------------------------------------------------------------------------------

    def receive(self, text: str | None) -> None:
        """Take a frame; None is a binary one. Returns at once: commands wait for those before them."""
        if self._closing or self.closed:
            return
        try:
            if text is None:
                raise ProtocolError("binary frames are not part of this subprotocol")
            if len(text) * _LONGEST > self.settings.max_message_size < len(text.encode()):
                raise ProtocolError(f"the frame is longer than MAX_MESSAGE_SIZE ({self.settings.max_message_size})")
            command = commands.parse(text)
        except commands.UnansweredSubscribeError as error:
            self.execution.reject(error.identifier)
            self.bad_frame(error)
        except ProtocolError as error:
            self.bad_frame(error)
        else:
            self._accept(command, len(text))

    def _accept(self, command: commands.AnyCommand, size: int) -> None:
        if isinstance(command, commands.Pong):
            self._last_pong = time.monotonic()
        elif isinstance(command, commands.Ping):
            self.outbox.push(messages.pong())
        elif not self.execution.add(command, size):
            self.disconnect(DisconnectReason.INVALID_REQUEST)

    def bad_frame(self, error: ProtocolError) -> None:
        """Count what the protocol does not allow; a client that goes on with it is sent away."""
        self._bad_frames += 1
        logger.warning("A frame was refused: %s.", error)
        if self._bad_frames > MAX_BAD_FRAMES:
            self.disconnect(DisconnectReason.INVALID_REQUEST)

    # -- heartbeat --------------------------------------------------------------------------------------------------

    def ping(self, frame: str) -> bool:
        """Send a ping, or end the connection of a client that does not answer; False: it is to have no more."""
        timeout = self.settings.pong_timeout
        if timeout is not None and self._last_pong is not None and time.monotonic() - self._last_pong > timeout:
            # Only who has ponged before is expected to (15).
            self.disconnect(DisconnectReason.NO_PONG)
            return False
        if self.ending:
            return False
        self.execution.rest()
        self.outbox.push(frame)
        return True

    # -- ending -----------------------------------------------------------------------------------------------------

    def disconnect(self, reason: DisconnectReason, *, reconnect: bool | None = None) -> None:
        """End the connection; the client is told why where its session must not be resumed (12)."""
        if self.ending:
            return
        self._closing = True
        self.execution.clear()
        if not (reason.resumable and self.extended):
            self.outbox.push(
                messages.disconnect(reason, reconnect=reason.resumable if reconnect is None else reconnect)
            )
            self._forget()
        self.hub.spawn(self._finish())

    def restart(self) -> None:
        """End the connection so that the client comes back and recovers."""
        self.disconnect(DisconnectReason.SERVER_RESTART)

    async def drain(self, delay: float) -> None:
        """End the connection before the server stops: after `delay` seconds, and after answering what was asked."""
        await asyncio.sleep(delay)
        if not self.closed:
            await self.execution.finished(CLOSE_TIMEOUT)
            self.restart()

    def revoke(self, *, reconnect: bool) -> None:
        """End the connection, and its session in whatever state that is, since someone disconnected its like."""
        self.disconnect(DisconnectReason.REMOTE, reconnect=reconnect)
        self._forget()

    def supersede(self) -> None:
        """The client came back before this connection was noticed dead: never two alive."""
        self._closing = True
        self.resumable = False
        self.hub.sessions.discard(self)
        self.outbox.abandon()
        self._connection.abort()

    def _too_slow(self) -> None:
        logger.warning("A client that reads too slowly was disconnected (too_slow).")
        self._closing = True
        self._connection.abort()

    async def _finish(self) -> None:
        if not await self.outbox.close(CLOSE_NORMAL, timeout=CLOSE_TIMEOUT):
            self._connection.abort()

    def _forget(self) -> None:
        if self.resumable:
            self.resumable = False
            self.hub.sessions.void(self)

    async def end(self) -> None:
        """The connection has gone: leave everything, and keep what a restore needs."""
        if self.closed:
            return
        self.closed = True
        self.outbox.abandon()
        self.hub.heartbeat.remove(self)
        # A handler that takes its time keeps nobody's place meanwhile.
        self._leave_all()
        await self.execution.finished()
        self._leave_all()
        if self.resumable:
            await self.hub.sessions.drop(self)
        self.hub.forget(self)
        if self._listening:
            self._listening = False
            self.hub.control.release()
        for subscription in self.subscriptions.values():
            await self.execution.call(subscription.channel, "unsubscribed", subscription.channel.unsubscribed)
        self._let_go()

    def _let_go(self) -> None:
        """Refer to nothing that refers to this: so it is freed at once, and not by a full garbage collection."""
        for subscription in self.subscriptions.values():
            subscription.let_go()
        self.subscriptions = {}
        self.outbox.let_go()
        del self.execution

    def _leave_all(self) -> None:
        for subscription in self.subscriptions.values():
            subscription.release()
