"""Answers calls. A call is an action whose client asks for the result (see Protocol: Calls)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from reliable_cable.channel import Channel
from reliable_cable.conf import get_settings
from reliable_cable.exceptions import ChannelError
from reliable_cable.protocol import messages
from reliable_cable.protocol.commands import Command, Perform, Presence
from reliable_cable.protocol.constants import CallFailure
from reliable_cable.validation import encode_channel_value

from .connection import Connection
from .handlers import finished, is_async


def with_answer(handler: Callable[[], Any], channel: Channel, call: str) -> Callable[[], Any]:
    """Return a handler that runs an action, and then transmits the result as the answer to a call.

    The answer becomes the last transmission in the reply of the action. So the client gets no answer if the reply
    cannot be applied. A result that cannot be encoded or is too large counts as an error of the action.

    Args:
        handler: a function without arguments that runs the action.
        channel: the channel of the action.
        call: the id that the client gave to the call.
    """
    return partial(_await_answer if is_async(handler) else _answer, handler, channel, call)


async def _await_answer(handler: Callable[[], Any], channel: Channel, call: str) -> None:
    _transmit(channel, call, finished(handler, await handler()))


def _answer(handler: Callable[[], Any], channel: Channel, call: str) -> None:
    _transmit(channel, call, finished(handler, handler()))


def _transmit(channel: Channel, call: str, result: Any) -> None:
    name = type(channel).__name__
    text, size = encode_channel_value(result, f"{name}: the result")
    limit = get_settings().max_broadcast_size
    if size > limit:
        raise ChannelError(
            f"{name}: the result has {size} bytes as JSON; RELIABLE_CABLE['MAX_BROADCAST_SIZE'] allows {limit}."
        )
    channel.reply.transmissions.append(messages.answer(call, text))


def answer_failure(connection: Connection, command: Perform, failure: CallFailure) -> None:
    """Tell the client why an action has no result. Do nothing if the client did not ask for the result."""
    if command.call is not None:
        answer = messages.failed_answer(command.call, failure)
        connection.outbox.push(messages.transmission(command.identifier, answer))


def answer_unsubscribed(connection: Connection, command: Command) -> None:
    """Answer a `presence` command or a call whose subscription does not exist. Ignore other commands.

    None of these commands violates the protocol, because the client may have sent it before it learned that the
    subscription had ended.
    """
    if isinstance(command, Presence):
        connection.outbox.push(messages.presence_event(command.identifier, messages.presence_error()))
    elif isinstance(command, Perform):
        answer_failure(connection, command, CallFailure.NOT_SUBSCRIBED)
