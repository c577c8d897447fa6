"""Commits in tests whose transaction never commits, such as those of `TestCase`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from itertools import takewhile
from typing import Any
from unittest.mock import patch

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from reliable_cable.concurrency import on_commit
from reliable_cable.logs import logger


def in_tested_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a transaction of the tested code is open, one that the code can roll back on its own.

    The transactions of the `TestCase` itself do not count. Inside them, `atomic()` of the tested code is a savepoint.
    """
    own = len(list(takewhile(lambda block: getattr(block, "_from_testcase", False), connection.atomic_blocks)))
    if not own:
        return on_commit.in_transaction(connection)
    # The outermost block has no savepoint, and blocks with `savepoint=False` have None.
    return any(savepoint is not None for savepoint in connection.savepoint_ids[own - 1 :])


def take_hooks(
    connection: BaseDatabaseWrapper, *, first: int = 0, kind: type[Any] = object
) -> list[Callable[[], object]]:
    """Remove `on_commit` hooks from a connection, and return them. Robust hooks log their errors.

    Args:
        connection: the connection.
        first: how many hooks, those that were registered first, to leave out.
        kind: the class of the hooks.
    """
    later: list[Any] = connection.run_on_commit[first:]
    connection.run_on_commit[first:] = [entry for entry in later if not isinstance(entry[1], kind)]
    return [partial(_call_robustly, hook) if robust else hook for _, hook, robust in later if isinstance(hook, kind)]


def _call_robustly(hook: Callable[[], object]) -> None:
    """Call a hook that was registered with `robust=True`, and log its error."""
    try:
        hook()
    except Exception:
        logger.exception("A function that was passed to on_commit() with robust=True failed.")


@contextmanager
def commits_of_tested_code() -> Iterator[None]:
    """Let the calls of this package wait only for the transactions of the tested code.

    When its outermost `atomic()` ends, these calls are made, as they are after a commit. Hooks that are registered
    before, as in `setUpTestData`, and hooks of other packages wait for the commit that never comes, as in every
    `TestCase`. Channels' `database_sync_to_async`, which its middlewares
    use, does not close a connection with an open transaction, as it usually does.
    """
    before = on_commit.must_wait
    on_commit.must_wait = in_tested_transaction
    try:
        with ExitStack() as stack:
            for connection in connections.all():
                wrapper = partial(_call_hooks_after_release, len(connection.run_on_commit))
                stack.enter_context(connection.execute_wrapper(wrapper))
                replaced: Any = {
                    "close_if_unusable_or_obsolete": partial(_close_outside_of_transactions, connection),
                    "on_commit": partial(_call_once_on_commit, connection),
                }
                stack.enter_context(patch.multiple(connection, **replaced))
            yield
    finally:
        on_commit.must_wait = before


def _close_outside_of_transactions(connection: BaseDatabaseWrapper) -> None:
    if not connection.in_atomic_block:
        type(connection).close_if_unusable_or_obsolete(connection)


def _call_once_on_commit(connection: BaseDatabaseWrapper, func: Callable[[], object], robust: bool = False) -> None:
    """Register a hook that `capture_broadcasts` and Django's `captureOnCommitCallbacks` call only once together."""
    uncalled = [func]

    @wraps(func)
    def hook() -> None:
        while uncalled:
            uncalled.pop()()

    unchanged = isinstance(func, on_commit.CommitHook) or not callable(func)
    type(connection).on_commit(connection, func if unchanged else hook, robust)


def _call_hooks_after_release(first: int, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    """Run a statement, and after the last `RELEASE SAVEPOINT` of the tested code, the hooks of this package.

    Args:
        first: how many hooks, those that were registered before the test, to leave out.
    """
    result = execute(sql, params, many, context)
    connection = context["connection"]
    if str(sql).startswith("RELEASE SAVEPOINT") and not in_tested_transaction(connection):
        for hook in take_hooks(connection, first=first, kind=on_commit.CommitHook):
            hook()
    return result
