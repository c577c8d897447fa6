"""Runs one handler of a channel for a call of anycable-go, and records its reply."""

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from reliable_cable.channel import Channel
from reliable_cable.client_log import ClientLog
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.connection.handlers import (
    REFUSALS,
    REFUSED,
    cancelled,
    overridden,
    refuses,
    run_calls,
    run_error_handler,
    run_in_context,
)
from reliable_cable.connection.started import check_joins
from reliable_cable.protocol.constants import CallFailure
from reliable_cable.reply import Reply


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of running a handler after its check.

    Attributes:
        reply: the reply of the handler. If the handler or its check has raised an error, the reply of `handle_error`.
            It is empty if the check has refused the client without an error.
        rejected: whether the client was refused, or the handler has failed. A subscription is then rejected.
        ends: whether an existing subscription ends, because the handler, its check or `handle_error` has called
            `reject()`.
        failure: the reason for which an action has no result. None if it has succeeded.
        outage: whether a database or store could not be reached, so that the client should try again.
    """

    reply: Reply
    rejected: bool = False
    ends: bool = False
    failure: CallFailure | None = None
    outage: bool = False


async def record(
    channel: Channel,
    name: str,
    handler: Callable[[], Any],
    check: Callable[[], Any] | None,
    log: ClientLog,
    *,
    decides: bool = False,
) -> Outcome:
    """Run a handler after its check, inside `around_command`. If one of them fails, run `handle_error`.

    See `Commands.call`, which runs handlers for a connection of this server, for the arguments other than `log`.
    """
    saved = channel.begin()
    try:
        calls = overridden(Channel, check, handler)
        result: object = None
        if calls:
            running = run_calls(channel.connection.around_command, calls, check, channel)
            result = await run_in_context(copy_context(), running)
        if result is REFUSED:
            ends = channel.reply.rejected
            channel.undo(saved)
            return Outcome(Reply(), rejected=True, ends=ends, failure=CallFailure.REFUSED)
        reply = channel.take_reply(saved)
        reply.rejected |= decides and refuses(result)
        if reply.presence:
            check_joins(channel, name, reply, None)
        return Outcome(reply, reply.rejected, reply.rejected)
    except (Exception, asyncio.CancelledError) as cause:
        if cancelled(cause):
            raise
        channel.undo(saved)
        refused = isinstance(cause, REFUSALS) and check is not None  # `unsubscribed` has no check and cannot refuse
        if refused:
            log.refusal("%s: %s refused its client: %r", type(channel).__name__, name, cause)
        else:
            log.exception("%s: %s failed.", type(channel).__name__, name)
        reply = await run_error_handler(channel, cause, name, log)
        return Outcome(
            reply,
            rejected=True,
            ends=reply.rejected,
            failure=CallFailure.REFUSED if refused else CallFailure.FAILED,
            outage=is_outage(cause),
        )
