"""Handles the commands of a connection: runs the handlers of channels, and applies the replies of the handlers.

See Architecture: The way of a command.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from typing import Any, Final

from reliable_cable.channel import Channel
from reliable_cable.client_log import ClientLog
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.concurrency.retrying import RETRY_DELAY
from reliable_cable.exceptions import ProtocolError
from reliable_cable.logs import logger
from reliable_cable.protocol import commands, messages
from reliable_cable.protocol.constants import REVOKED, CallFailure, DisconnectReason, Subprotocol
from reliable_cable.reply import PresenceLeave, Reply

from .answers import answer_failure, answer_unsubscribed
from .channels import find_action, make_channel
from .command_limits import WAITING_TIME, CommandLimits
from .command_queue import CommandQueue
from .connection import HANDLER_FAULT, Connection, ConnectionState
from .handlers import REFUSALS, REFUSED, cancelled, overridden, refuses, run_calls, run_error_handler, run_in_context
from .openings import Openings
from .started import Started, check_joins
from .streams import RevokedError
from .subscription import Subscription

#: For how many seconds after its arrival a `subscribe` is retried while a database or store cannot be reached. The
#: client gives up after 10 seconds.
SUBSCRIBE_TIMEOUT: Final = 8.0
#: The minimum time, in seconds, that a `subscribe` gets to open its streams, even after `SUBSCRIBE_TIMEOUT`.
MIN_OPEN_TIME: Final = 1.0


#: The commands that are useless after the connection has ended, and are then skipped. Actions, for example, still run.
_ANSWERED = (commands.Subscribe, commands.History, commands.Presence)


class Commands(CommandQueue):
    """Handles the commands of one connection.

    Args:
        connection: the connection from which the commands come.
    """

    __slots__ = ("_openings", "connection", "subscriptions")

    def __init__(self, connection: Connection) -> None:
        limits = CommandLimits.of(connection.hub.settings)
        super().__init__(connection.hub.tasks, connection.account, connection.context, limits)
        self.connection = connection
        self.subscriptions: dict[str, Subscription] = {}
        #: The `subscribe` commands that are handled in separate tasks, or None if there are none.
        self._openings: Openings | None = None
        connection.commands = self
        connection.subscriptions = self.subscriptions

    @property
    def log(self) -> ClientLog:
        """The logger for messages that the client can cause repeatedly. It limits their number."""
        return self.connection.log

    def limits_exceeded(self) -> None:
        """Disconnect the client when its queued commands have been handled."""
        logger.warning("A client is disconnected: its commands exceeded RATE_LIMITS for %g s.", WAITING_TIME)
        self.connection.hub.tasks.spawn(self.connection.drain(0, DisconnectReason.RATE_LIMITED))

    async def execute(self, command: commands.Command, arrived: float) -> None:
        """Handle one command of the client (see `CommandQueue.execute`)."""
        if isinstance(command, _ANSWERED) and self.connection.closed:
            return
        if isinstance(command, commands.Subscribe):
            await self._start_subscribe(command, arrived)
            return
        subscription = self.subscriptions.get(command.identifier)
        if subscription is None:
            answer_unsubscribed(self.connection, command)
            return
        match command:
            case commands.Perform():
                found = find_action(self.connection, subscription.channel, command)
                if found is None:
                    return answer_failure(self.connection, command, CallFailure.UNKNOWN_ACTION)
                began = self.connection.hub.engine.session_clock.moment()
                reply = await self.call(subscription.channel, *found)
                if reply is None or reply.refused:
                    failure = CallFailure.FAILED if reply is None else CallFailure.REFUSED
                    answer_failure(self.connection, command, failure)
                if reply is not None and reply is not REFUSED:
                    await self._apply(subscription, reply, began)
            case commands.Unsubscribe():
                await self._unsubscribe(subscription)
            case _ if not self.connection.extended:
                name = type(command).__name__
                self.connection.bad_frame(ProtocolError(f"{name} is not part of {Subprotocol.BASE_JSON}"))
            case commands.History(history=request):
                subscription.catch_up(request)
            case commands.Whisper(data=data):
                await subscription.whisper(data)
            case commands.Join(presence=claim):
                if await subscription.presence.authorizes(claim):
                    await subscription.presence.join(claim.id, claim.info, claimed=True)
            case commands.Leave():
                await subscription.presence.leave()
            case commands.Presence(return_records=return_records):
                await subscription.presence.send_info(return_records=return_records)

    # -- subscribing --------------------------------------------------------------------------------------------------

    async def _start_subscribe(self, command: commands.Subscribe, arrived: float) -> None:
        """Handle a `subscribe`. If another follows, this may return before the streams are open (see `openings.py`)."""
        running = self._openings.running if self._openings is not None else {}
        others_follow = isinstance(self.next_command, commands.Subscribe)
        identifier, limit = command.identifier, self.connection.hub.settings.max_subscriptions
        alone = (
            identifier in self.subscriptions or identifier in running or len(self.subscriptions) + len(running) >= limit
        )
        if alone or not (others_follow or running):
            await self._wait_for_openings()
            await self._subscribe(command, arrived)
            return
        openings = self._openings = self._openings or Openings(self.connection.hub.tasks)
        openings.add(identifier, self._subscribe(command, arrived))
        if openings.full or not others_follow:
            await self._wait_for_openings()

    async def _wait_for_openings(self) -> None:
        if self._openings is not None:
            await self._openings.wait()
            self._openings = None

    async def finished(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the timeout cancels nothing
        """Wait until the queued commands have been handled, for at most `timeout` seconds."""
        await super().finished(timeout)
        if self._openings is not None:
            # Usually, the next command in the queue waits for these tasks, but the queue may have been cleared.
            await self._openings.wait(timeout)

    async def _subscribe(self, command: commands.Subscribe, arrived: float) -> None:
        identifier = command.identifier
        try:
            known = self.subscriptions.get(identifier)
            if known is not None:
                if known.confirmed:
                    return known.repeat()
                await self._unsubscribe(known)
            channel = make_channel(self.connection, identifier)
            if channel is None:
                await self._reject(identifier)
            elif len(self.subscriptions) >= self.connection.hub.settings.max_subscriptions:
                self.log.warning("A subscription beyond MAX_SUBSCRIPTIONS was rejected.")
                await self._reject(identifier)
            else:
                await self._subscribe_with_retries(command, channel, arrived)
        except Exception:
            self.log.exception("The subscription %r could not be made.", identifier)
            if identifier not in self.subscriptions:
                await self._reject(identifier)
        finally:
            self.answered(identifier, arrived)

    async def _subscribe_with_retries(self, command: commands.Subscribe, channel: Channel, arrived: float) -> None:
        """Make a subscription. Retry while a database or store cannot be reached.

        Also retry if the subscription is revoked while it is being made, because the handler may have run before the
        revocation. The client gets no answer during the retries, because a rejection would be final.
        """
        identifier = command.identifier
        until = arrived + SUBSCRIBE_TIMEOUT
        candidate: Channel | None = channel
        while candidate is not None:
            subscription = Subscription(self.connection, identifier, candidate)
            try:
                await self._try_to_subscribe(subscription, command, until)
                return
            except Exception as error:
                subscription.end()
                if not is_outage(error) and not isinstance(error, RevokedError):
                    raise
                if asyncio.get_running_loop().time() + RETRY_DELAY > until:
                    return await self._give_up(candidate, error)
                self.log.debug("The subscription %r could not be made; trying again: %s", identifier, error)
            await asyncio.sleep(RETRY_DELAY)
            if self.connection.ending or not self.is_wanted(identifier, arrived):
                return
            candidate = make_channel(self.connection, identifier)

    async def _try_to_subscribe(self, subscription: Subscription, command: commands.Subscribe, until: float) -> None:
        """Run `subscribed` and apply its reply. If an error is raised, the client has not been sent the answer."""
        channel = subscription.channel
        request = command.history if self.connection.extended else None
        subscription.restorable = request is None
        subscription.authorized_at = self.connection.hub.engine.session_clock.moment()
        async with self._one_handler():
            handler, check = channel.subscribed, channel.before_subscribe
            reply = await self.call(channel, "subscribed", handler, check, retried=True, decides=True) or REFUSED
        joins: list[Any] = []
        if not reply.rejected:
            subscription.started = Started.by(reply)
            # After a slow handler, the store must still have time to open the streams.
            least = asyncio.get_running_loop().time() + MIN_OPEN_TIME
            await subscription.apply_streams(reply, request, until=max(until, least))
            joins += [join for join in reply.presence if not isinstance(join, PresenceLeave)]
            if command.presence is not None:
                async with self._one_handler():
                    authorized = await subscription.presence.authorizes(command.presence)
                joins += [command.presence] if authorized else []
        await self._wait_for_earlier(subscription.identifier)
        if not reply.rejected and subscription.revocation() is not None:
            raise RevokedError("it was revoked while it was being made")
        if not reply.rejected and not subscription.reserve(subscription.member):
            self.log.warning("A subscription was rejected: its client's subscriptions and members need too many bytes.")
            reply = REFUSED
        await self.connection.outbox.transmit(subscription.identifier, reply.transmissions)
        if reply.rejected:
            subscription.end()
            self.connection.reject(subscription.identifier)
            return
        if subscription.revocation() is not None:
            # The subscription was revoked while the client received the transmissions. A retry would send them again.
            subscription.end()
            self.connection.close(DisconnectReason.SERVER_RESTART)
            return
        self.subscriptions[subscription.identifier] = subscription
        if self.connection.closed:
            return  # `end_connection` waits for this command, and then ends the subscription
        subscription.confirm()
        subscription.catch_up(request, joins)
        self.connection.changed()

    def _one_handler(self) -> AbstractAsyncContextManager[Any]:
        """Return a context manager that prevents the handlers of several `subscribe` commands from running at once."""
        return nullcontext() if self._openings is None else self._openings.handlers

    async def _wait_for_earlier(self, identifier: str) -> None:
        """Wait until all `subscribe` commands before the one with this identifier have been answered."""
        if self._openings is not None:
            await self._openings.wait_for_earlier(identifier)

    async def _reject(self, identifier: str) -> None:
        await self._wait_for_earlier(identifier)
        self.connection.reject(identifier)

    async def _give_up(self, channel: Channel, error: Exception) -> None:
        """Run `handle_error`, and disconnect the client, so that it reconnects and subscribes again."""
        identifier = channel.identifier
        self.log.warning("The subscription %r could not be made. Its client is disconnected: %s", identifier, error)
        reply = await run_error_handler(channel, error, "subscribed", self.log)
        await self.connection.outbox.transmit(identifier, reply.transmissions)
        self.connection.close(DisconnectReason.SERVER_RESTART)

    async def _unsubscribe(self, subscription: Subscription) -> None:
        await self._wait_for_openings()  # after a revocation, openings may still be running
        self.subscriptions.pop(subscription.identifier, None)
        subscription.end()
        # The record is saved first, so that no restore brings back a member after other clients saw it leave.
        await self.connection.save()
        try:
            await subscription.presence.leave()
        except Exception:
            self.log.exception("A member could not be removed from presence. It leaves when it expires.")
        await self.call(subscription.channel, "unsubscribed", subscription.channel.unsubscribed)

    # -- revoking -----------------------------------------------------------------------------------------------------

    def revoke(self, identifiers: Collection[str], reason: str) -> None:
        """End subscriptions at once, and send the client the reason. A queued call then removes their members."""
        for identifier in identifiers:
            subscription = self.subscriptions.pop(identifier)
            subscription.revoked = True
            subscription.end()
            self.connection.outbox.push(messages.revoked(identifier, reason))
            self.call_next(partial(self._unsubscribe, subscription))
        self.connection.changed()

    def end_if_revoked(self, identifier: str) -> bool:
        """End a restored subscription if it was revoked during the restore. Return whether it was ended."""
        subscription = self.subscriptions[identifier]
        if subscription.revocation() is None:
            return False
        del self.subscriptions[identifier]
        subscription.end()
        return True

    # -- actions ------------------------------------------------------------------------------------------------------

    async def _apply(self, subscription: Subscription, reply: Reply, began: float) -> None:
        """Apply a reply to a subscription. `began` is the `moment` of the session clock at which the handler began."""
        if reply.streams:
            try:
                await subscription.apply_streams(reply)
            except Exception:
                # A reply must not be applied in part. So the client has to reconnect and subscribe again.
                self.log.exception(
                    "A stream of the subscription %r could not be opened. Its client is disconnected.",
                    subscription.identifier,
                )
                await self._unsubscribe(subscription)
                self.connection.close(DisconnectReason.SERVER_RESTART)
                return
            # A stream may have been revoked after the handler had decided to start it.
            revocation = subscription.revocation(self.connection.hub.engine.session_clock.at(began))
            if revocation is not None and not subscription.revoked:
                self.connection.revoke([subscription.identifier], revocation.reason, revocation.at)
        if (reply.streams or reply.changed) and not subscription.reserve(subscription.member):
            self.log.warning("A session was forgotten, because its subscriptions and members need too many bytes.")
            self.connection.forget_session()
        # A restore, on any server, must bring back every change whose effect the client has seen.
        saved = not (reply.streams or reply.changed) or await self.connection.save()
        if not saved or subscription.revoked:
            return
        if reply.transmissions:
            await self.connection.outbox.transmit(subscription.identifier, reply.transmissions)
        if reply.rejected:
            if not self.connection.extended or self.connection.closed:
                await self._unsubscribe(subscription)
                self.connection.reject(subscription.identifier)
            elif not subscription.revoked:
                # An extended client ignores a rejection that answers no command. So it has to reconnect.
                self.connection.revoke([subscription.identifier], REVOKED, float("inf"))
            return
        if reply.presence:
            await subscription.presence.apply(reply)
        if reply.streams:
            subscription.catch_up()

    # -- handlers -----------------------------------------------------------------------------------------------------

    async def call(
        self,
        channel: Channel,
        name: str,
        handler: Callable[[], Any],
        check: Callable[[], Any] | None = None,
        *,
        retried: bool = False,
        decides: bool = False,
    ) -> Reply | None:
        """Run a handler after its check. If one of them raises an error, apply the reply of `handle_error`.

        Args:
            channel: the channel that the handler belongs to.
            name: the name of the handler, for the log and for `handle_error`.
            handler: a function without arguments that runs the handler.
            check: a function that runs `before_subscribe` or `before_action`. If it refuses, the handler is not called.
            retried: whether the caller retries after an outage. If so, an error that an outage caused is raised, and
                `handle_error` is not called.
            decides: whether a false result of the handler, other than None, rejects the subscription.

        Returns:
            The reply; None if the handler or the check failed. If one of them refused the client, the reply is the
            object `REFUSED`. But if the check refused by `reject()`, which ends the subscription, the reply is another
            object with the same values.
        """
        saved = channel.begin()
        try:
            calls = overridden(Channel, check, handler)
            outcome: object = None
            if calls:
                # Only `connect` may change the context of the connection. So each handler runs in a copy.
                running = run_calls(channel.connection.around_command, calls, check, channel)
                outcome = await run_in_context(copy_context(), running)
            if outcome is REFUSED:
                reply = Reply(rejected=True, refused=True) if channel.reply.rejected else REFUSED
                channel.undo(saved)
                return reply
            reply = channel.take_reply(saved)
            reply.rejected |= decides and refuses(outcome)
            if reply.presence:
                check_joins(channel, name, reply, self.subscriptions.get(channel.identifier))
            return reply
        except (Exception, asyncio.CancelledError) as cause:
            if cancelled(cause):
                raise
            channel.undo(saved)
            self.connection.on_error(cause)
            if not is_outage(cause):
                self.connection.count_fault(HANDLER_FAULT)
            elif retried:
                raise
            refused = isinstance(cause, REFUSALS) and check is not None  # `unsubscribed` has no check and cannot refuse
            if refused:
                self.log.refusal("%s: %s refused its client: %r", type(channel).__name__, name, cause)
            else:
                self.log.exception("%s: %s failed.", type(channel).__name__, name)
            began = self.connection.hub.engine.session_clock.moment()
            reply = await run_error_handler(channel, cause, name, self.log)
        subscription = self.subscriptions.get(channel.identifier)
        if subscription is not None and subscription.channel is channel and not self.connection.closed:
            await self._apply(subscription, reply, began)
        # Nothing is sent during a restore. If the subscription cannot be restored, the client subscribes again.
        elif self.connection.state is not ConnectionState.OPENING:
            await self.connection.outbox.transmit(channel.identifier, reply.transmissions)
        return REFUSED if refused else None
