"""One connection: how it begins, what it reads and writes, and how it ends. What commands do is in execution.py."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from typing import Any

from .exceptions import ProtocolError
from .execution import Execution
from .hub import Hub
from .identity import Identity
from .outbox import Outbox, Send
from .protocol import commands, messages
from .protocol.constants import CLOSE_NORMAL, DisconnectReason, Subprotocol
from .restore import make_record, restore
from .servers.base import Connection
from .sessions.base import SessionRecord
from .stream_ids import StreamIds
from .subscription import Subscription

logger = logging.getLogger("reliable_cable")

#: Broken frames after which a client is sent away.
MAX_BAD_FRAMES = 20
#: Seconds that a restored identifier's `history` may take (PROTOCOL.md, 5).
HISTORY_DEADLINE = 10.0
#: Seconds that a farewell may take to be written.
CLOSE_TIMEOUT = 2.0


class CableSession:
    """The server's side of one connection.

    Args:
        hub: of this event loop.
        consumer: what channels see as `self.connection`.
        send: the ASGI `send`.
        subprotocol: what was agreed on.
        identity: whose connection it is.
        authenticated: when that was found out, by the session store's clock.
        ping_interval: seconds.
        connection: what is known of the server's transport.
    """

    def __init__(
        self,
        hub: Hub,
        consumer: Any,
        send: Send,
        *,
        subprotocol: Subprotocol,
        identity: Identity,
        authenticated: float,
        ping_interval: float,
        connection: Connection,
    ) -> None:
        self.hub = hub
        self.settings = hub.settings
        self.consumer = consumer
        self.extended = subprotocol.extended
        self.identity = identity
        self.authenticated = authenticated
        self.sid = secrets.token_urlsafe(18)
        #: The ids of the sessions that this one continues, the latest first.
        self.former: tuple[str, ...] = ()
        #: Whether it took a session over, and its announcement has not been heard yet (control.py).
        self.announcing = False
        self.closed = False
        self.outbox = Outbox(
            send, limit=self.settings.max_pending_size, overflow=self._too_slow, write=connection.write
        )
        self.subscriptions: dict[str, Subscription] = {}
        self._connection = connection
        self.ping_interval = ping_interval
        self._ping_timer: asyncio.TimerHandle | None = None
        self._last_pong: float | None = None
        self._bad_frames = 0
        self.execution = Execution(self)
        self.stream_ids = StreamIds(extended=self.extended)
        self.resumable = self.extended and hub.sessions.enabled
        self._closing = False
        self._listening = False

    @property
    def sids(self) -> frozenset[str]:
        """Every id by which the session is known."""
        return frozenset((self.sid, *self.former))

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
        first = self.ping_interval * random.uniform(0.5, 1.5)  # noqa: S311 - spreads pings, no secret
        self._ping_timer = loop.call_later(first, self._ping)

    def record(self) -> SessionRecord:
        """Return what a restore needs, as of now."""
        return make_record(self)

    def changed(self) -> None:
        """What a restore needs has changed."""
        if self.resumable:
            self.hub.sessions.changed(self)

    async def save(self) -> None:
        """What a restore needs has changed: keep that before anybody sees the effect."""
        if self.resumable:
            await self.hub.sessions.save(self)

    # -- reading ----------------------------------------------------------------------------------------------------

    def receive(self, text: str | None) -> None:
        """Take a frame; None is a binary one. Returns at once: commands wait for those before them."""
        if self._closing or self.closed:
            return
        try:
            if text is None:
                raise ProtocolError("binary frames are not part of this subprotocol")
            if len(text.encode()) > self.settings.max_message_size:
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

    def _ping(self) -> None:
        timeout = self.settings.pong_timeout
        if timeout is not None and self._last_pong is not None and time.monotonic() - self._last_pong > timeout:
            # Only who has ponged before is expected to (15).
            return self.disconnect(DisconnectReason.NO_PONG)
        self.outbox.push(messages.ping(time.time()))
        self._ping_timer = asyncio.get_running_loop().call_later(self.ping_interval, self._ping)

    # -- ending -----------------------------------------------------------------------------------------------------

    def disconnect(self, reason: DisconnectReason, *, reconnect: bool | None = None) -> None:
        """End the connection; the client is told why where its session must not be resumed (12)."""
        if self._closing or self.closed:
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
        if self._ping_timer is not None:
            self._ping_timer.cancel()
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

    def _leave_all(self) -> None:
        for subscription in self.subscriptions.values():
            subscription.end()
            subscription.presence.release()
