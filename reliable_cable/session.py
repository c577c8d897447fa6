"""One connection: reads commands, runs handlers one after another, applies what they recorded, and writes."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from .channel import Channel, PresenceLeave, Reply, find_channel
from .exceptions import ProtocolError
from .handlers import REFUSED, run_recorded
from .hub import Hub
from .outbox import Outbox, Send
from .protocol import commands, messages
from .protocol.constants import CLOSE_NORMAL, DisconnectReason, MessageType, Subprotocol
from .restore import make_record, restore
from .servers.base import Connection
from .sessions.base import SessionRecord
from .stream_ids import StreamIds
from .streams.base import Message
from .subscription import Subscription

logger = logging.getLogger("reliable_cable")

#: Broken frames after which a client is sent away.
MAX_BAD_FRAMES = 20
#: Commands that may wait for the ones before them.
MAX_PENDING_COMMANDS = 1024
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
        user: names the connection's identity, for restores.
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
        user: str,
        ping_interval: float,
        connection: Connection,
    ) -> None:
        self.hub = hub
        self.settings = hub.settings
        self.consumer = consumer
        self.extended = subprotocol.extended
        self.user = user
        self.sid = secrets.token_urlsafe(18)
        self.sids = frozenset([self.sid])
        self.closed = False
        self.outbox = Outbox(send, limit=self.settings.max_pending_size, overflow=self._too_slow)
        self.subscriptions: dict[str, Subscription] = {}
        self._connection = connection
        self.ping_interval = ping_interval
        self._ping_timer: asyncio.TimerHandle | None = None
        self._last_pong: float | None = None
        self._bad_frames = 0
        self._pending: deque[tuple[commands.AnyCommand, int]] = deque()
        self._pending_size = 0
        self._worker: asyncio.Task[None] | None = None
        #: Identifiers whose `subscribe` is waiting or being handled.
        self._subscribing: set[str] = set()
        self.stream_ids = StreamIds(extended=self.extended)
        self.resumable = self.extended and hub.sessions.enabled
        self._closing = False

    # -- beginning --------------------------------------------------------------------------------------------------

    async def start(self, sid: str | None) -> None:
        """Welcome the client, after restoring the session `sid` if it may have that."""
        loop = asyncio.get_running_loop()
        self._connection.attach(self.outbox.pause, self.outbox.resume)
        transmissions: list[str] = []
        restored = await restore(self, sid, transmissions) if sid and self.resumable else None
        self.hub.connections[self.sid] = self
        self.outbox.push(messages.welcome(self.sid, restored))
        for text in transmissions:
            self.outbox.push(text)
        if self.resumable:
            self.hub.sessions.add(self)
            self.changed()
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
            self._reject(error.identifier)
            self._bad_frame(error)
        except ProtocolError as error:
            self._bad_frame(error)
        else:
            self._accept(command, len(text))

    def _accept(self, command: commands.AnyCommand, size: int) -> None:
        if isinstance(command, commands.Pong):
            self._last_pong = time.monotonic()
            return
        if isinstance(command, commands.Ping):
            self.outbox.push(messages.pong())
            return
        if isinstance(command, commands.Subscribe):
            if command.identifier in self._subscribing:
                return  # repeated while the first is being handled (2)
            self._subscribing.add(command.identifier)
        elif isinstance(command, commands.Unsubscribe):
            self._subscribing.discard(command.identifier)
        self._pending.append((command, size))
        self._pending_size += size
        if len(self._pending) > MAX_PENDING_COMMANDS or self._pending_size > self.settings.max_pending_size:
            self.disconnect(DisconnectReason.INVALID_REQUEST)
        elif self._worker is None:
            self._worker = self.hub.spawn(self._work())

    def _bad_frame(self, error: ProtocolError) -> None:
        self._bad_frames += 1
        logger.warning("A frame was refused: %s.", error)
        if self._bad_frames > MAX_BAD_FRAMES:
            self.disconnect(DisconnectReason.INVALID_REQUEST)

    async def _work(self) -> None:
        try:
            while self._pending:
                command, size = self._pending.popleft()
                self._pending_size -= size
                if self.closed and isinstance(command, commands.Subscribe | commands.History | commands.Presence):
                    continue  # nobody is left to be answered
                try:
                    await self._execute(command)
                except Exception:
                    logger.exception("The command %s failed.", type(command).__name__)
        finally:
            self._worker = None

    async def _execute(self, command: commands.AnyCommand) -> None:
        if isinstance(command, commands.Subscribe):
            try:
                await self._subscribe(command)
            except Exception:
                logger.exception("The subscription %s could not be made.", command.identifier)
                if command.identifier not in self.subscriptions:
                    self._reject(command.identifier)
            finally:
                self._subscribing.discard(command.identifier)
            return
        assert isinstance(command, commands.Command)  # noqa: S101 - for the type checker; pings never wait
        subscription = self.subscriptions.get(command.identifier)
        if subscription is None:
            # A client may well be late: it unsubscribes, and what it sent before is on its way.
            if isinstance(command, commands.Presence):
                self.outbox.push(messages.presence_event(command.identifier, messages.presence_error()))
            return
        await self._execute_for(subscription, command)

    async def _execute_for(self, subscription: Subscription, command: commands.Command) -> None:
        match command:
            case commands.Perform():
                await self._perform(subscription, command)
            case commands.Unsubscribe():
                await self._unsubscribe(subscription)
            case _ if not self.extended:
                self._bad_frame(ProtocolError(f"{type(command).__name__} is not part of {Subprotocol.BASE_JSON}"))
            case commands.History(history=request):
                subscription.settle(request)
                subscription.cancel_deadline()
            case commands.Whisper(data=data):
                stream = subscription.whisper_stream
                # Falsy messages are dropped by clients (11).
                if stream is not None and data not in ("null", "false", "0", '""'):
                    await self.hub.engine.streams.awhisper(stream, Message(data, exclude=self.sid))
            case commands.Join(presence=claim):
                if await subscription.presence.authorizes(claim):
                    await subscription.presence.join(claim.id, claim.info)
            case commands.Leave():
                await subscription.presence.leave()
            case commands.Presence(return_records=return_records):
                await subscription.presence.send_info(return_records=return_records)

    # -- subscriptions ----------------------------------------------------------------------------------------------

    async def _subscribe(self, command: commands.Subscribe) -> None:
        identifier = command.identifier
        known = self.subscriptions.get(identifier)
        if known is not None:
            if known.confirmed:
                return  # a second confirmation would make the client unsubscribe (1)
            await self._unsubscribe(known)
        channel = self.make_channel(identifier)
        if channel is None or len(self.subscriptions) >= self.settings.max_subscriptions:
            if channel is not None:
                logger.warning("A subscription beyond MAX_SUBSCRIPTIONS was rejected.")
            return self._reject(identifier)
        subscription = Subscription(self, identifier, channel)
        request = command.history if self.extended else None
        reply = await self.call(channel, "subscribed", channel.subscribed, channel.before_subscribe)
        joins: list[Any] = []
        if reply is not None and not reply.rejected:
            try:
                await subscription.apply_streams(reply, request)
                joins += reply.presence
                if command.presence is not None and await subscription.presence.authorizes(command.presence):
                    joins.append(command.presence)
            except Exception:
                logger.exception("The subscription %s could not be made.", identifier)
                reply = None
        if reply is not None:
            self._transmit(identifier, reply)
        if reply is None or reply.rejected:
            subscription.end()
            return self._reject(identifier)
        self.subscriptions[identifier] = subscription
        if self.closed:
            return  # the end of the connection, which waits for this, takes it down
        subscription.confirm()
        subscription.settle(request, [join for join in joins if not isinstance(join, PresenceLeave)])
        self.changed()

    async def _unsubscribe(self, subscription: Subscription) -> None:
        self.subscriptions.pop(subscription.identifier, None)
        subscription.end()
        try:
            await subscription.presence.leave()
        except Exception:
            logger.exception("Presence could not be left; the member goes when its time is over.")
        self.changed()
        await self.call(subscription.channel, "unsubscribed", subscription.channel.unsubscribed)

    async def _perform(self, subscription: Subscription, command: commands.Perform) -> None:
        channel = subscription.channel
        # As in Rails, data that names no action is for `receive`.
        name = command.data.get("action", "receive")
        method = channel.find_action(name) if isinstance(name, str) else None
        if method is None:
            known = ", ".join(channel.action_names()) or "none"
            return self._bad_frame(
                ProtocolError(f"{type(channel).__name__} has no action {name!r:.80}; it has {known}")
            )

        attribute, takes_data = method
        data = dict(command.data)
        reply = await self.call(
            channel,
            str(name),
            partial(getattr(channel, attribute), *((data,) if takes_data else ())),
            partial(channel.before_action, str(name), data),
        )
        if reply is None or reply is REFUSED:
            return
        try:
            await subscription.apply_streams(reply)
        except Exception:
            logger.exception("A stream of %s could not be opened.", subscription.identifier)
            subscription.settle()
            self.changed()
        self._transmit(subscription.identifier, reply)
        if reply.rejected:
            await self._unsubscribe(subscription)
            return self._reject(subscription.identifier)
        await subscription.presence.apply(reply)
        if reply.streams:
            subscription.settle()
        if reply.streams or channel.has_state:
            self.changed()

    def make_channel(self, identifier: str) -> Channel | None:
        try:
            name, params = commands.parse_identifier(identifier)
        except ProtocolError as error:
            self._bad_frame(error)
            return None
        cls = find_channel(name)
        if cls is None:
            self._bad_frame(ProtocolError(f"there is no channel {name!r:.80}"))
            return None
        return cls(self.consumer, params, identifier)

    async def call(
        self, channel: Channel, name: str, handler: Callable[[], Any], check: Callable[[], Any] | None = None
    ) -> Reply | None:
        """Run a handler after its check; return what it recorded, REFUSED if the check said no, None if one raised."""
        reply, failed = await run_recorded(channel, name, handler, check)
        if failed:
            self._transmit(channel.identifier, reply)
            return None
        return reply

    def _transmit(self, identifier: str, reply: Reply) -> None:
        for data in reply.transmissions:
            self.outbox.push(messages.transmission(identifier, data))

    def _reject(self, identifier: str) -> None:
        self.outbox.push(messages.acknowledgement(MessageType.REJECT_SUBSCRIPTION, identifier))

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
        self._pending.clear()
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
        worker = self._worker
        if worker is not None:
            await asyncio.wait([worker], timeout=CLOSE_TIMEOUT)
        self.restart()

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
            self.hub.spawn(self.hub.sessions.delete(self.sid))

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
        if self._worker is not None:
            await asyncio.wait([self._worker])
            self._leave_all()
        if self.resumable:
            await self.hub.sessions.drop(self)
        self.hub.forget(self)
        for subscription in self.subscriptions.values():
            await self.call(subscription.channel, "unsubscribed", subscription.channel.unsubscribed)

    def _leave_all(self) -> None:
        for subscription in self.subscriptions.values():
            subscription.end()
            subscription.presence.release()
