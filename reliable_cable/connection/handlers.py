"""Runs what application code wrote, where it belongs, and keeps what it recorded only if it did not raise."""

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

#: What a handler's check that said no amounts to.
REFUSED = Reply(rejected=True)


def _cancelled(error: BaseException) -> bool:
    """Whether it is we who were cancelled, not something that a handler awaited."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


async def invoke(call: Callable[..., Any]) -> Any:
    """Run a handler, sync or async; one that was not overridden costs nothing."""
    target = call.func if isinstance(call, partial) else call
    if getattr(target, "__func__", None) is getattr(Channel, getattr(target, "__name__", ""), None):
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
    """Run a handler after its check.

    Args:
        channel: whose handler it is.
        name: the handler's, for the log and for `handle_error`.
        handler: called with nothing.
        check: called before; if it returns False, the handler is not called and the reply is `REFUSED`.
        retried: whether the caller retries after an outage. Its error is then raised, without a call of `handle_error`.

    Returns:
        What is to be applied, and whether one of them raised: then it is what `handle_error` recorded.
    """
    saved = channel.begin()
    changed = False
    try:
        if check is not None and await invoke(check) is False:
            channel.undo(saved)
            return REFUSED, False
        await invoke(handler)
        changed = channel.dump_state() != saved
    except (Exception, asyncio.CancelledError) as cause:
        if _cancelled(cause):
            raise
        channel.undo(saved)
        if retried and is_outage(cause):
            raise
        error = cause if isinstance(cause, Exception) else RuntimeError("what the handler awaited was cancelled")
        logger.exception("%s: %s failed.", type(channel).__name__, name)
        return await run_error_handler(channel, error, name), True
    return channel.take_reply(changed=changed), False


async def run_error_handler(channel: Channel, error: Exception, name: str) -> Reply:
    """Run a channel's `handle_error`; return the reply that it recorded.

    Args:
        channel: the channel whose handler raised.
        error: the error that the handler raised.
        name: the handler's name.
    """
    saved = channel.begin()
    changed = False
    try:
        await invoke(partial(channel.handle_error, error, name))
        changed = channel.dump_state() != saved
    except (Exception, asyncio.CancelledError) as cause:
        if _cancelled(cause):
            raise
        logger.exception("%s.handle_error failed.", type(channel).__name__)
        channel.undo(saved)
    return channel.take_reply(changed=changed)
