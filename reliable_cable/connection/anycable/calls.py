"""Runs the handlers of consumers and channels for the remote procedure calls of anycable-go.

A call passes through the middlewares of the consumer, like a handshake. The scope contains the `RemoteCall` as an
extension. The consumer then passes itself to `RemoteCall.run`, and serves no WebSocket.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from django.core.exceptions import ObjectDoesNotExist

from reliable_cable import origins
from reliable_cable.auth.admission import Admission
from reliable_cable.auth.verification import SCOPE_KEY
from reliable_cable.channel import Channel
from reliable_cable.client_log import ClientLog, handshake_log
from reliable_cable.conf import get_settings
from reliable_cable.connection.channels import find_action, make_channel
from reliable_cable.connection.handlers import run_in_context
from reliable_cable.exceptions import ProtocolError
from reliable_cable.middleware import set_socket_id
from reliable_cable.protocol import commands, messages
from reliable_cable.protocol.constants import REVOKED, TRY_AGAIN, CallFailure, DisconnectReason, MessageType

from .effects import add_reply, load_state
from .identifiers import dump_identifiers, load_identifiers
from .recording import Outcome, record
from .requests import Answer, Env, Status, read_list, read_text

#: The key in the connection's state that is set if the user was authenticated by a login, and not by a token.
LOGIN: Final = "$login"
#: The key in a subscription's state that is set when an action has ended the subscription with `reject()`.
ENDED: Final = "$ended"
#: The close code that is passed to `disconnect` of consumers, because anycable-go does not pass on the real close code.
UNKNOWN_CLOSE_CODE: Final = 1006

_SET: Final = "1"


@dataclass(frozen=True, slots=True)
class Hooks:
    """The functions with which a call runs the handlers of a consumer.

    Args:
        decide: runs `connect`. It returns the reason for which the client is refused, or None.
        leave: runs `disconnect`. Its argument is the close code.
    """

    decide: Callable[[], Awaitable[str | None]]
    leave: Callable[[int], Awaitable[object]]


class RemoteConnection:
    """The part of a connection that the lookup of channels and actions uses (see `connection.channels`).

    Args:
        consumer: the consumer that serves the call.
        log: the logger for messages that clients can cause repeatedly.
    """

    __slots__ = ("consumer", "log")

    def __init__(self, consumer: Any, log: ClientLog) -> None:
        self.consumer = consumer
        self.log = log

    def bad_frame(self, error: ProtocolError) -> None:
        """Log a command that violates the protocol."""
        self.log.warning("A command was refused: %s.", error)


class RemoteCall:
    """A call of anycable-go. Each subclass implements one method of AnyCable's service.

    Args:
        values: the fields of the call.
        sid: the session id of the client, or `""` if it is unknown.
        log: the logger for messages that clients can cause repeatedly.

    Raises:
        ProtocolError: a field is not valid.
    """

    #: Whether `connect` of the consumer runs in this call.
    connects: ClassVar[bool] = False

    def __init__(self, values: Mapping[str, Any], sid: str, log: ClientLog) -> None:
        self.env = Env.of(values)
        self.sid = sid
        self.log = log
        #: The answer; None until `run` has ended.
        self.answer: Answer | None = None

    async def run(self, consumer: Any, admission: Admission, hooks: Hooks) -> None:
        """Run the handlers, and set the answer.

        Args:
            consumer: the consumer. Its middlewares have run, and have set its user.
            admission: the result of the middlewares.
            hooks: the functions that run the handlers of the consumer.
        """
        context = copy_context()
        context.run(set_socket_id, self.sid)
        self.answer = await run_in_context(context, self.respond(consumer, admission, hooks))

    async def respond(self, consumer: Any, admission: Admission, hooks: Hooks) -> Answer:
        """Return the answer. The arguments are those of `run`."""
        raise NotImplementedError


class ConnectCall(RemoteCall):
    """The call for a new client."""

    connects = True

    async def respond(self, consumer: Any, admission: Admission, hooks: Hooks) -> Answer:
        """Check the origin of the client, run `connect`, and return the welcome or the refusal."""
        if not self._origin_is_allowed(consumer):
            return refused(DisconnectReason.UNAUTHORIZED)
        reason = await hooks.decide()
        if reason == TRY_AGAIN:
            return Answer(Status.ERROR, "The client could not be authenticated now. The reason is in Django's log.")
        if reason is not None:
            return refused(DisconnectReason(reason))
        text, state = dump_identifiers(consumer)
        if not _has_token(consumer) and admission.login is not None and admission.login.is_of(consumer.user):
            state[LOGIN] = _SET
        return Answer(Status.SUCCESS, identifiers=text, cstate=state, transmissions=[messages.welcome(self.sid)])

    def _origin_is_allowed(self, consumer: Any) -> bool:
        scope, allowed = consumer.scope, consumer.allowed_origins
        tenants = get_settings().namespace is not None
        if not origins.is_allowed(scope, allowed, tenants=tenants):
            origins.log_refusal(scope, "A client of anycable-go was refused")
            return False
        names = {name for name, _ in scope["headers"]}
        if b"cookie" in names and b"origin" not in names and allowed != origins.EVERY_ORIGIN:
            # Every browser sends an origin. Without it, pages of other sites could use the cookies of their visitors.
            handshake_log.warning(
                "A client of anycable-go was refused, because its cookies came without its Origin. Start anycable-go "
                "with --headers=cookie,origin (ANYCABLE_HEADERS=cookie,origin)."
            )
            return False
        return True


class CommandCall(RemoteCall):
    """The call for a command of a client: `subscribe`, `unsubscribe` or `message`."""

    def __init__(self, values: Mapping[str, Any], sid: str, log: ClientLog) -> None:
        super().__init__(values, sid, log)
        self.identifiers = read_text(values, "connection_identifiers")
        self.identifier = read_text(values, "identifier")
        #: The error for which a `subscribe` is rejected before any handler runs. None if the command is valid.
        self._fault: ProtocolError | None = None
        frame: dict[str, Any] = {"command": read_text(values, "command"), "identifier": self.identifier}
        settings = get_settings()
        if frame["command"] == "message":
            data = read_text(values, "data")
            if len(data.encode()) > settings.max_message_size:
                raise ProtocolError(f"the data is longer than MAX_MESSAGE_SIZE ({settings.max_message_size})")
            frame["data"] = data
        self.command: commands.AnyCommand
        try:
            self.command = commands.parse(messages.dumps(frame), settings.max_identifier_size)
        except commands.UnansweredSubscribeError as error:
            self.command = commands.Subscribe(self.identifier)
            self._fault = error

    async def respond(self, consumer: Any, admission: Admission, hooks: Hooks) -> Answer:
        """Run the handlers of the command, and return the answer, which contains their reply."""
        reason = await enter(consumer, admission, self.identifiers, self.env)
        if reason is not None:
            answer = refused(reason)
            answer.disconnect = True
            return answer
        connection = RemoteConnection(consumer, self.log)
        if self._fault is not None:
            connection.bad_frame(self._fault)
            return self._rejection()
        channel = make_channel(connection, self.identifier)
        match self.command:
            case commands.Subscribe():
                return await self._subscribe(channel)
            case commands.Unsubscribe():
                if channel is not None:
                    await unsubscribe(channel, self.env.channel_state, self.log)
                return Answer(Status.SUCCESS, stop_streams=True)
            case commands.Perform() as command:
                return await self._perform(command, connection, channel)
        raise ProtocolError(f"the command {type(self.command).__name__} is not one of AnyCable's service")

    async def _subscribe(self, channel: Channel | None) -> Answer:
        if channel is None:
            return self._rejection()
        outcome = await record(
            channel, "subscribed", channel.subscribed, channel.before_subscribe, self.log, decides=True
        )
        if outcome.outage:
            # anycable-go closes the connection. The client reconnects, and subscribes again.
            self.log.warning("The subscription %r could not be made. Its client is disconnected.", self.identifier)
            answer = Answer(Status.FAILURE, disconnect=True)
            answer.transmissions = self._transmissions(outcome)
            return answer
        if outcome.rejected:
            return self._rejection(self._transmissions(outcome))
        answer = Answer(Status.SUCCESS)
        add_reply(answer, channel, outcome.reply, {})
        answer.transmissions.append(messages.acknowledgement(MessageType.CONFIRM_SUBSCRIPTION, self.identifier))
        return answer

    async def _perform(
        self, command: commands.Perform, connection: RemoteConnection, channel: Channel | None
    ) -> Answer:
        state = self.env.channel_state
        answer = Answer(Status.SUCCESS)
        if channel is None or ENDED in state:
            return self._with_failure(answer, command, CallFailure.NOT_SUBSCRIBED)
        load_state(channel, state)
        found = find_action(connection, channel, command)
        if found is None:
            return self._with_failure(answer, command, CallFailure.UNKNOWN_ACTION)
        name, handler, check = found
        outcome = await record(channel, name, handler, check, self.log)
        if outcome.failure is not None:
            self._with_failure(answer, command, outcome.failure)
        if outcome.ends:
            answer.transmissions += self._transmissions(outcome)
            answer.transmissions.append(messages.revoked(self.identifier, REVOKED))
            answer.transmissions.append(messages.acknowledgement(MessageType.REJECT_SUBSCRIPTION, self.identifier))
            answer.stop_streams, answer.istate = True, {ENDED: _SET}
            await unsubscribe(channel, None, self.log)
        else:
            add_reply(answer, channel, outcome.reply, state)
        return answer

    def _with_failure(self, answer: Answer, command: commands.Perform, failure: CallFailure) -> Answer:
        """Add the failure to the answer, if the client asked for the result of its action (see Protocol: Calls)."""
        if command.call is not None:
            failed = messages.failed_answer(command.call, failure)
            answer.transmissions.append(messages.transmission(self.identifier, failed))
        return answer

    def _transmissions(self, outcome: Outcome) -> list[str]:
        return [messages.transmission(self.identifier, text) for text in outcome.reply.transmissions]

    def _rejection(self, transmissions: list[str] | None = None) -> Answer:
        rejection = messages.acknowledgement(MessageType.REJECT_SUBSCRIPTION, self.identifier)
        return Answer(Status.FAILURE, transmissions=[*(transmissions or []), rejection])


class DisconnectCall(RemoteCall):
    """The call for a client whose connection has ended."""

    def __init__(self, values: Mapping[str, Any], sid: str, log: ClientLog) -> None:
        super().__init__(values, sid, log)
        self.identifiers = read_text(values, "identifiers")
        self.subscriptions = read_list(values, "subscriptions")

    async def respond(self, consumer: Any, admission: Admission, hooks: Hooks) -> Answer:
        """Run `unsubscribed` of each subscription, and then `disconnect`."""
        reason = await enter(consumer, admission, self.identifiers, self.env)
        if reason is not None:
            self.log.info("A client has left whose user cannot be restored. Its `unsubscribed` runs nevertheless.")
        for identifier in self.subscriptions:
            channel = make_channel(RemoteConnection(consumer, self.log), identifier)
            if channel is not None:
                await unsubscribe(channel, _states_of(self.env, identifier), self.log)
        await hooks.leave(UNKNOWN_CLOSE_CODE)
        return Answer(Status.SUCCESS)


async def enter(consumer: Any, admission: Admission, identifiers: str, env: Env) -> DisconnectReason | None:
    """Set the identifiers of a consumer for a call after `connect`.

    Args:
        consumer: the consumer. Its middlewares have run.
        admission: the result of the middlewares.
        identifiers: the text with the identifiers.
        env: the data about the connection that anycable-go sent with the call.

    Returns:
        The reason to end the connection, because the token is not valid any more, the login has ended, a row of an
        identifier was deleted, or the connection belongs to another namespace. None if the connection may go on.

    Raises:
        ProtocolError: the identifiers, or the state that completes them, are not a JSON object.
    """
    login = admission.login if LOGIN in env.connection_state else None
    ended = LOGIN in env.connection_state and login is None
    try:
        namespace = await load_identifiers(consumer, identifiers, env.connection_state)
        # anycable-go does not know the namespace of a token. The middlewares do, if they have read the token.
        if namespace != consumer.namespace and not _has_token(consumer):
            handshake_log.warning("A client of anycable-go is disconnected: it was admitted in another namespace.")
            ended = True
    except ObjectDoesNotExist as error:
        handshake_log.info("A client of anycable-go is disconnected: %s.", error)
        ended = True
    # Without a token in the scope, `admission.refusal` may say that a token is required. This refusal is ignored,
    # because anycable-go may have verified a token that it does not pass on.
    if _has_token(consumer) and admission.refusal is not None:
        return admission.refusal
    if ended or (login is not None and not login.is_of(consumer.user)):
        return DisconnectReason.UNAUTHORIZED
    return None


async def unsubscribe(channel: Channel, state: Mapping[str, str] | None, log: ClientLog) -> None:
    """Run `unsubscribed` of a channel, unless an action has ended the subscription before.

    Args:
        channel: the channel.
        state: the state that anycable-go has sent for the subscription. None means that `channel` already has it.
        log: the logger for errors.
    """
    if state is not None:
        if ENDED in state:
            return
        load_state(channel, state)
    await record(channel, "unsubscribed", channel.unsubscribed, None, log)


def refused(reason: DisconnectReason) -> Answer:
    """Return the answer that refuses or ends a connection. It tells the client not to reconnect."""
    return Answer(Status.FAILURE, str(reason), transmissions=[messages.disconnect(reason, reconnect=False)])


def _has_token(consumer: Any) -> bool:
    return consumer.scope.get(SCOPE_KEY) is not None


def _states_of(env: Env, identifier: str) -> dict[str, str]:
    """Return the state of a subscription from a `disconnect` call. If its JSON text is invalid, return `{}`."""
    try:
        state = json.loads(env.channel_state.get(identifier) or "{}")
    except ValueError:
        state = None
    return {str(name): str(text) for name, text in state.items()} if isinstance(state, dict) else {}
