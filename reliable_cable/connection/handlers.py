"""Runs handlers of channels, in a thread if they are sync. The reply of a handler that raises is dropped."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from reliable_cable.channel import Channel
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.concurrency.threads import refresh_connections, run_handler
from reliable_cable.reply import Reply

logger = logging.getLogger("reliable_cable")

#: The reply of a handler that was not called because its check returned False.
REFUSED = Reply(rejected=True)


def _cancelled(error: BaseException) -> bool:
    """Return whether this task was cancelled. If not, something that a handler awaited was cancelled."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


async def invoke(call: Callable[..., Any], base: type = Channel) -> Any:
    """Run a sync or async handler. Do nothing if no subclass has overridden it.

    Args:
        call: the handler, a method of an object, or a partial call of it.
        base: the class that declares the handler.
    """
    target = call.func if isinstance(call, partial) else call
    if getattr(target, "__func__", None) is getattr(base, getattr(target, "__name__", ""), None):
        return None
    if inspect.iscoroutinefunction(call):
        refresh_connections()
        return await call()
    return await run_handler(call)


async def run_recorded(
    channel: Channel,
    name: str,
    handler: Callable[[], Any],
    check: Callable[[], Any] | None,
    *,
    retried: bool = False,
) -> tuple[Reply, bool]:
    """Run the check of a handler, and then the handler unless the check returned False.

    Args:
        channel: the channel.
        name: the name of the handler, for the log and for `handle_error`.
        handler: the handler, which takes no arguments.
        check: called first. If it returns False, the handler is not called and the reply is `REFUSED`.
        retried: whether the caller retries after an outage. The outage's error is then raised, and `handle_error` is
            not called.

    Returns:
        The reply, and whether the handler or the check raised. If so, the reply is that of `handle_error`.
    """
    saved = channel.begin()
    try:
        if check is not None and await invoke(check) is False:
            channel.undo(saved)
            return REFUSED, False
        await invoke(handler)
        return channel.take_reply(saved), False
    except (Exception, asyncio.CancelledError) as cause:
        if _cancelled(cause):
            raise
        channel.undo(saved)
        if retried and is_outage(cause):
            raise
        error = (
            cause if isinstance(cause, Exception) else RuntimeError("something that the handler awaited was cancelled")
        )
        logger.exception("%s: %s failed.", type(channel).__name__, name)
        return await run_error_handler(channel, error, name), True


async def run_error_handler(channel: Channel, error: Exception, name: str) -> Reply:
    """Run `handle_error` of a channel. Return the reply that it recorded.

    Args:
        channel: the channel whose handler raised.
        error: the error that the handler raised.
        name: the name of the handler.
    """
    saved = channel.begin()
    try:
        await invoke(partial(channel.handle_error, error, name))
        return channel.take_reply(saved)
    except (Exception, asyncio.CancelledError) as cause:
        if _cancelled(cause):
            raise
        logger.exception("%s.handle_error failed.", type(channel).__name__)
        channel.undo(saved)
        return channel.take_reply(saved)
