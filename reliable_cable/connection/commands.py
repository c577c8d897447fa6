"""What a connection's commands do: runs them one after another, calls handlers, and applies what they recorded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from reliable_cable.channel import Channel, find_channel
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.exceptions import ProtocolError
from reliable_cable.hub.repair import RETRY_DELAY
from reliable_cable.protocol import commands, messages
from reliable_cable.protocol.constants import MessageType, Subprotocol
from reliable_cable.protocol.payloads import is_falsy
from reliable_cable.reply import PresenceLeave, Reply
from reliable_cable.stores.streams.base import Message

from .handlers import REFUSED, run_error_handler, run_recorded
from .subscription import Subscription

if TYPE_CHECKING:
    from .connection import CableSession

logger = logging.getLogger("reliable_cable")

#: Commands that may wait for the ones before them.
MAX_PENDING_COMMANDS = 1024

#: How long, in seconds after its arrival, to retry a `subscribe` that fails because a database or store cannot be
#: reached. The client gives up after 10 seconds.
SUBSCRIBE_PATIENCE = 8.0

_ANSWERED = (commands.Subscribe, commands.History, commands.Presence)
#: Commands after which more are likely to come.
_REPEATED = (commands.Perform, commands.Whisper)


class _Backlog:
    """The commands of a connection that are being handled or wait for that; idle connections have none."""

    __slots__ = ("commands", "lingers", "parked", "size", "subscribing")

    def __init__(self) -> None:
        #: Each command with the size of its frame and, for a `subscribe`, the time of its arrival.
        self.commands: deque[tuple[commands.Command, int, float]] = deque()
        #: Of the frames whose commands wait, in characters.
        self.size = 0
        #: Identifiers whose `subscribe` is waiting or being handled, with the time of its arrival.
        self.subscribing: dict[str, float] = {}
        #: Whether the worker waits for the next command when it has none left, and what it waits for.
        self.lingers = True
        self.parked: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Let the worker go on, if it waits; it ends if there is nothing to be done."""
        if self.parked is not None and not self.parked.done():
            self.parked.set_result(None)


class Execution:
    """The commands of one connection.

    A task runs them: so handlers have one, and the connection's end is noticed meanwhile. It lingers until the next
    ping: a client that sends one message after another costs a task for each ping, not for each message, and an idle
    one has none.

    Args:
        session: the connection's.
    """

    __slots__ = ("_backlog", "_worker", "session")

    def __init__(self, session: CableSession) -> None:
        self.session = session
        self._backlog: _Backlog | None = None
        self._worker: asyncio.Task[None] | None = None

    def add(self, command: commands.Command, size: int) -> bool:
        """Let a command wait for those before it; False if too many do."""
        backlog = self._backlog
        if backlog is None:
            backlog = self._backlog = _Backlog()
            self._worker = self.session.hub.spawn(self._work(backlog))
        else:
            backlog.wake()
        arrived = 0.0
        if isinstance(command, commands.Subscribe):
            if command.identifier in backlog.subscribing:
                return True  # repeated while the first is being handled (2)
            arrived = backlog.subscribing[command.identifier] = time.monotonic()
        elif isinstance(command, commands.Unsubscribe):
            backlog.subscribing.pop(command.identifier, None)
        backlog.commands.append((command, size, arrived))
        backlog.size += size
        return len(backlog.commands) <= MAX_PENDING_COMMANDS and backlog.size <= self.session.settings.max_pending_size

    def clear(self) -> None:
        """Forget the commands that wait."""
        if self._backlog is not None:
            self._backlog.commands.clear()

    def rest(self) -> None:
        """Let a worker that has nothing to do end."""
        if self._backlog is not None:
            self._backlog.wake()

    async def finished(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - gives up, and cancels nothing
        """Wait until the commands so far have been handled, for at most `timeout` seconds."""
        if self._backlog is not None and self._worker is not None:
            self._backlog.lingers = False
            self._backlog.wake()
            await asyncio.wait([self._worker], timeout=timeout)

    async def _work(self, backlog: _Backlog) -> None:
        context = copy_context()
        try:
            while backlog.commands:
                command, size, arrived = backlog.commands.popleft()
                backlog.size -= size
                if self.session.closed and isinstance(command, _ANSWERED):
                    continue  # nobody is left to be answered
                try:
                    await self._execute(command, arrived)
                except Exception:
                    logger.exception("The command %s failed.", type(command).__name__)
                if isinstance(command, commands.Subscribe) and self._is_wanted(command.identifier, arrived):
                    del backlog.subscribing[command.identifier]
                if (
                    backlog.lingers
                    and not backlog.commands
                    and isinstance(command, _REPEATED)
                    # What a handler has set, a language say, is for none after it.
                    and copy_context() == context
                ):
                    backlog.parked = asyncio.get_running_loop().create_future()
                    await backlog.parked
                    backlog.parked = None
        finally:
            self._backlog = self._worker = None

    def _is_wanted(self, identifier: str, arrived: float) -> bool:
        """Return whether the `subscribe` that arrived at this time is still the one to be answered."""
        return self._backlog is not None and self._backlog.subscribing.get(identifier) == arrived

    async def _execute(self, command: commands.Command, arrived: float) -> None:
        if isinstance(command, commands.Subscribe):
            try:
                await self._subscribe(command, arrived)
            except Exception:
                logger.exception("The subscription %s could not be made.", command.identifier)
                if command.identifier not in self.session.subscriptions:
                    self.reject(command.identifier)
            return
        subscription = self.session.subscriptions.get(command.identifier)
        if subscription is None:
            # A client may well be late: it unsubscribes, and what it sent before is on its way.
            if isinstance(command, commands.Presence):
                self.session.outbox.push(messages.presence_event(command.identifier, messages.presence_error()))
            return
        await self._execute_for(subscription, command)

    async def _execute_for(self, subscription: Subscription, command: commands.Command) -> None:
        match command:
            case commands.Perform():
                await self._perform(subscription, command)
            case commands.Unsubscribe():
                await self._unsubscribe(subscription)
            case _ if not self.session.extended:
                self.session.bad_frame(
                    ProtocolError(f"{type(command).__name__} is not part of {Subprotocol.BASE_JSON}")
                )
            case commands.History(history=request):
                subscription.settle(request)
                subscription.cancel_deadline()
            case commands.Whisper(data=data):
                stream = subscription.whisper_stream
                # Falsy messages are dropped by clients (11).
                if stream is not None and not is_falsy(data):
                    await self.session.hub.engine.streams.awhisper(stream, Message(data, exclude=self.session.sid))
            case commands.Join(presence=claim):
                if await subscription.presence.authorizes(claim):
                    await subscription.presence.join(claim.id, claim.info)
            case commands.Leave():
                await subscription.presence.leave()
            case commands.Presence(return_records=return_records):
                await subscription.presence.send_info(return_records=return_records)

    # -- subscriptions ----------------------------------------------------------------------------------------------

    async def _subscribe(self, command: commands.Subscribe, arrived: float) -> None:
        identifier = command.identifier
        known = self.session.subscriptions.get(identifier)
        if known is not None:
            if known.confirmed:
                return  # a second confirmation would make the client unsubscribe (1)
            await self._unsubscribe(known)
        channel = self.make_channel(identifier)
        if channel is None or len(self.session.subscriptions) >= self.session.settings.max_subscriptions:
            if channel is not None:
                logger.warning("A subscription beyond MAX_SUBSCRIPTIONS was rejected.")
            return self.reject(identifier)
        # While a database or store cannot be reached, nothing is answered. For the client, a rejection is final. So is
        # the end of the connection before an answer.
        while channel is not None:
            subscription = Subscription(self.session, identifier, channel)
            try:
                return await self._try_to_subscribe(subscription, command)
            except Exception as error:
                subscription.end()
                if not is_outage(error):
                    raise
                if time.monotonic() + RETRY_DELAY > arrived + SUBSCRIBE_PATIENCE:
                    return await self._give_up(channel, error)
                logger.debug("The subscription %s could not be made; trying again: %s", identifier, error)
            await asyncio.sleep(RETRY_DELAY)
            if self.session.ending or not self._is_wanted(identifier, arrived):
                return
            channel = self.make_channel(identifier)

    async def _try_to_subscribe(self, subscription: Subscription, command: commands.Subscribe) -> None:
        """Run the handler and apply its reply. If this raises, nothing was sent to the client."""
        identifier, channel = subscription.identifier, subscription.channel
        request = command.history if self.session.extended else None
        subscription.restorable = request is None
        reply = await self.call(channel, "subscribed", channel.subscribed, channel.before_subscribe, retried=True)
        joins: list[Any] = []
        if reply is not None and not reply.rejected:
            await subscription.apply_streams(reply, request)
            joins += reply.presence
            if command.presence is not None and await subscription.presence.authorizes(command.presence):
                joins.append(command.presence)
        if reply is not None:
            self._transmit(identifier, reply)
        if reply is None or reply.rejected:
            subscription.end()
            return self.reject(identifier)
        self.session.subscriptions[identifier] = subscription
        if self.session.closed:
            return  # the end of the connection, which waits for this, takes it down
        subscription.confirm()
        subscription.settle(request, [join for join in joins if not isinstance(join, PresenceLeave)])
        self.session.changed()

    async def _give_up(self, channel: Channel, error: Exception) -> None:
        """Disconnect the client, so that it reconnects and subscribes again."""
        identifier = channel.identifier
        logger.warning("The subscription %s could not be made; its client is disconnected: %s", identifier, error)
        self._transmit(identifier, await run_error_handler(channel, error, "subscribed"))
        self.session.restart()

    async def _unsubscribe(self, subscription: Subscription) -> None:
        self.session.subscriptions.pop(subscription.identifier, None)
        subscription.end()
        # Before anybody sees it gone: or a restore would bring it back, joined, and a new one with its former state.
        await self.session.save()
        try:
            await subscription.presence.leave()
        except Exception:
            logger.exception("Presence could not be left; the member goes when its time is over.")
        await self.call(subscription.channel, "unsubscribed", subscription.channel.unsubscribed)

    async def _perform(self, subscription: Subscription, command: commands.Perform) -> None:
        channel = subscription.channel
        # As in Rails, data that names no action is for `receive`.
        name = command.data.get("action", "receive")
        method = channel.find_action(name) if isinstance(name, str) else None
        if method is None:
            known = ", ".join(channel.action_names()) or "none"
            return self.session.bad_frame(
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
        # A restore, on any server, must bring back every change whose effect the client has seen.
        if (reply.streams or reply.changed) and not await self.session.save():
            return
        self._transmit(subscription.identifier, reply)
        if reply.rejected:
            await self._unsubscribe(subscription)
            return self.reject(subscription.identifier)
        if reply.presence:
            await subscription.presence.apply(reply)
        if reply.streams:
            subscription.settle()

    def make_channel(self, identifier: str) -> Channel | None:
        """Return the application's object for an identifier; None if there is no such channel."""
        try:
            name, params = commands.parse_identifier(identifier)
        except ProtocolError as error:
            self.session.bad_frame(error)
            return None
        cls = find_channel(name)
        if cls is None:
            self.session.bad_frame(ProtocolError(f"there is no channel {name!r:.80}"))
            return None
        return cls(self.session.consumer, params, identifier)

    async def call(
        self,
        channel: Channel,
        name: str,
        handler: Callable[[], Any],
        check: Callable[[], Any] | None = None,
        *,
        retried: bool = False,
    ) -> Reply | None:
        """Run a handler after its check. Return its reply; REFUSED if the check said no; None if one of them raised.

        If `retried` is True, the error of an outage is raised, and `handle_error` is not called for it.
        """
        reply, failed = await run_recorded(channel, name, handler, check, retried=retried)
        if failed:
            if not reply.changed or await self.session.save():
                self._transmit(channel.identifier, reply)
            return None
        return reply

    def _transmit(self, identifier: str, reply: Reply) -> None:
        for data in reply.transmissions:
            self.session.outbox.push(messages.transmission(identifier, data))

    def reject(self, identifier: str) -> None:
        """Answer that a subscription was refused."""
        self.session.outbox.push(messages.acknowledgement(MessageType.REJECT_SUBSCRIPTION, identifier))
