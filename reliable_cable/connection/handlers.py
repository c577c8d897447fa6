"""Runs handlers of channels, in a thread if they are sync."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from reliable_cable.channel import Channel
from reliable_cable.concurrency.threads import refresh_connections, run_handler
from reliable_cable.reply import Reply

logger = logging.getLogger("reliable_cable")

#: The reply of a handler that was not called because its check returned False.
REFUSED = Reply(rejected=True)


def cancelled(error: BaseException) -> bool:
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


async def run_error_handler(channel: Channel, cause: BaseException, name: str) -> Reply:
    """Run `handle_error` of a channel. Return the reply that it recorded.

    Args:
        channel: the channel whose handler raised.
        cause: the error that the handler raised.
        name: the name of the handler.
    """
    error = cause if isinstance(cause, Exception) else RuntimeError("something that the handler awaited was cancelled")
    saved = channel.begin()
    try:
        await invoke(partial(channel.handle_error, error, name))
        return channel.take_reply(saved)
    except (Exception, asyncio.CancelledError) as failure:
        if cancelled(failure):
            raise
        logger.exception("%s.handle_error failed.", type(channel).__name__)
        channel.undo(saved)
        return channel.take_reply(saved)
