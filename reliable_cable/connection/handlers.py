"""Runs the handlers of channels. Sync handlers run in a thread.

Each call of a handler runs in its own copy of the connection's context.
"""

import asyncio
import inspect
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context, copy_context
from functools import lru_cache, partial
from typing import Any, Final, TypeVar

from django.core.exceptions import ObjectDoesNotExist, PermissionDenied, ValidationError
from django.http import Http404

from reliable_cable.channel import Channel
from reliable_cable.client_log import ClientLog
from reliable_cable.concurrency.django_thread import refresh_connections
from reliable_cable.concurrency.threads import run_handler
from reliable_cable.exceptions import MissingParam
from reliable_cable.reply import Reply

T = TypeVar("T")

#: The reply if a handler or its check has refused the client.
REFUSED = Reply(rejected=True, refused=True)

#: The errors by which a handler refuses a request of its client. They are logged without a traceback.
REFUSALS: Final = (ObjectDoesNotExist, PermissionDenied, ValidationError, Http404, MissingParam)

#: The text of the error that is raised if `around_command` suppresses the error of a check or handler. If no error were
#: raised, a failed check would count as passed.
_SUPPRESSED: Final = "around_command suppressed an error of a handler or its check; let errors pass through it"


def cancelled(error: BaseException) -> bool:
    """Return whether an error means that the current task itself was cancelled.

    The cancellation of a task or future that the current task awaits does not count.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


#: The result is cached, because `inspect.iscoroutinefunction` is slow and each command needs it.
_is_coroutine_function = lru_cache(maxsize=1024)(inspect.iscoroutinefunction)


def is_async(handler: Callable[..., Any]) -> bool:
    """Return whether a handler, or the handler that a `partial` calls, is a coroutine function."""
    target = handler.func if isinstance(handler, partial) else handler
    return _is_coroutine_function(getattr(target, "__func__", target))


def overridden(base: type, *handlers: Callable[[], Any] | None) -> list[Callable[[], Any]]:
    """Return the handlers that are not None and that `base` does not itself define. Handlers of `base` do nothing."""
    overridden = []
    for handler in handlers:
        if handler is not None:
            function = getattr(handler.func if isinstance(handler, partial) else handler, "__func__", None)
            if function is None or function is not getattr(base, function.__name__, None):
                overridden.append(handler)
    return overridden


async def invoke_isolated(consumer: Any, handler: Callable[[], Any], base: type = Channel) -> Any:
    """Run a handler in a copy of the connection's context, inside `around_command`. A sync handler runs in a thread.

    Nothing happens if no subclass overrides the handler.

    Args:
        consumer: the consumer of the connection.
        handler: a bound method, or a `partial` of it that needs no arguments.
        base: the class that declares the handler.
    """
    calls = overridden(base, handler)
    return await run_in_context(copy_context(), run_calls(consumer.around_command, calls)) if calls else None


@types.coroutine
def run_in_context(context: Context, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run a coroutine in a context, as a part of the current task.

    The caller does not see the context variables that the coroutine sets.

    Args:
        context: the context to run in. Nothing else may run in it at the same time.
        coroutine: a coroutine that has not started.
    """
    try:
        awaited = context.run(coroutine.send, None)
        while True:
            try:
                sent = yield awaited
            except BaseException as error:
                # The task was cancelled, or the awaited object raised an error.
                awaited = context.run(coroutine.throw, error)
            else:
                awaited = context.run(coroutine.send, sent)
    except StopIteration as end:
        result: T = end.value
        return result


async def run_calls(
    around: Callable[[], Any],
    calls: Sequence[Callable[[], Any]],
    check: Callable[[], Any] | None = None,
    channel: Channel | None = None,
) -> Any:
    """Run a check, a handler, or a check and then its handler. If both are sync, they run in one thread hop.

    Args:
        around: a function that returns the sync or async context manager in which the functions run.
        calls: the functions to run, in order.
        check: the check, or None. `calls` does not contain it if the channel does not override it. If the check
            refuses the client, the handler is not called.
        channel: the channel that the check belongs to. The check can also refuse by calling the channel's `reject()`.

    Returns:
        The result of the last function, or `REFUSED` if the check refused.
    """
    asynchronous = is_async(calls[-1])
    if len(calls) > 1 and is_async(calls[0]) is not asynchronous:
        if await run_calls(around, calls[:1], check, channel) is REFUSED:
            return REFUSED
        calls = calls[1:]
    manager = around()
    if not hasattr(manager, "__enter__"):
        async with manager:
            return await run_calls(nullcontext, calls, check, channel)
        raise RuntimeError(_SUPPRESSED)
    if not asynchronous:
        return await run_handler(_run_in_thread, manager, calls, check, channel)
    refresh_connections()
    with manager:
        for call in calls:
            result = finished(call, await call())
            if call is check and _check_refuses(result, channel):
                return REFUSED
        return result
    raise RuntimeError(_SUPPRESSED)


def _run_in_thread(
    manager: AbstractContextManager[Any],
    calls: Sequence[Callable[[], Any]],
    check: Callable[[], Any] | None,
    channel: Channel | None,
) -> Any:
    with manager:
        for call in calls:
            result = finished(call, call())
            if call is check and _check_refuses(result, channel):
                return REFUSED
        return result
    raise RuntimeError(_SUPPRESSED)


def refuses(verdict: object) -> bool:
    """Return whether the result of a check refuses the client. A check may return None, which does not refuse."""
    return verdict is not None and not verdict


def _check_refuses(verdict: object, channel: Channel | None) -> bool:
    """Return whether a check refuses the client: by its result, or because it has called `reject()`."""
    return refuses(verdict) or (channel is not None and channel.reply.rejected)


def finished(call: Callable[[], Any], result: Any) -> Any:
    """Return the result of a handler or a check, unless it shows that the code has not run.

    Raises:
        TypeError: the result is a coroutine or a generator, so the code of the handler has not run.
    """
    if not (inspect.isawaitable(result) or isinstance(result, Generator | AsyncGenerator)):
        return result
    if inspect.iscoroutine(result):
        result.close()
    target = call.func if isinstance(call, partial) else call
    raise TypeError(
        f"{getattr(target, '__qualname__', target)} returned a {type(result).__name__}, so its code has not run. If it "
        "is async, it must be declared with `async def`, and so must the wrapper functions of its decorators."
    )


async def run_error_handler(channel: Channel, cause: BaseException, name: str, log: ClientLog) -> Reply:
    """Run `handle_error` of a channel, and return its reply.

    Args:
        channel: the channel whose handler raised the error.
        cause: the error that the handler raised.
        name: the name of the handler.
        log: the logger of the connection.
    """
    error = cause if isinstance(cause, Exception) else RuntimeError("something that the handler awaited was cancelled")
    saved = channel.begin()
    try:
        await invoke_isolated(channel.connection, partial(channel.handle_error, error, name))
        return channel.take_reply(saved)
    except (Exception, asyncio.CancelledError) as failure:
        if cancelled(failure):
            raise
        log.exception("%s.handle_error failed.", type(channel).__name__)
        channel.undo(saved)
        return channel.take_reply(saved)
