"""Runs a coroutine in a context of its own, without a task."""

import types
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


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
