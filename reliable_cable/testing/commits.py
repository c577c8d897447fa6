"""Simulates commits in tests whose transaction is rolled back, such as the tests of `TestCase`."""

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
    """Return whether the tested code has begun a transaction that is still open.

    The transactions that `TestCase` begins do not count. Inside them, a transaction of the tested code is a savepoint.
    """
    own = len(list(takewhile(lambda block: getattr(block, "_from_testcase", False), connection.atomic_blocks)))
    if not own:
        return on_commit.in_transaction(connection)
    # `savepoint_ids` has no entry for the outermost `atomic()` block. For a block with `savepoint=False`, the entry is
    # None.
    return any(savepoint is not None for savepoint in connection.savepoint_ids[own - 1 :])


def take_hooks(
    connection: BaseDatabaseWrapper, *, first: int = 0, kind: type[Any] = object
) -> list[Callable[[], object]]:
    """Remove `on_commit` hooks from a connection, and return them. Hooks with `robust=True` log errors when called.

    Args:
        connection: the database connection.
        first: the index of the first hook to remove, in the order of registration.
        kind: the class of the hooks to remove.
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
    """Treat the end of the tested code's outermost `atomic()` as a commit, for the hooks of this package.

    Without this context, a broadcast in a `TestCase` would wait for the commit of the test's own transaction, which
    never happens. Hooks of other packages still wait for that commit. So do hooks that were registered before the test,
    as in `setUpTestData`.

    Channels' middlewares call `database_sync_to_async`, which usually closes a connection even during a transaction.
    In this context, it leaves such a connection open.
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
    """Register a hook that runs once, even if `capture_broadcasts` and `captureOnCommitCallbacks` both call it."""
    uncalled = [func]

    @wraps(func)
    def hook() -> None:
        while uncalled:
            uncalled.pop()()

    unchanged = isinstance(func, on_commit.CommitHook) or not callable(func)
    type(connection).on_commit(connection, func if unchanged else hook, robust)


def _call_hooks_after_release(first: int, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    """Run an SQL statement. If it ends the tested code's outermost `atomic()`, call the hooks of this package.

    Args:
        first: the number of hooks that were registered before the test. These hooks are not called.
    """
    result = execute(sql, params, many, context)
    connection = context["connection"]
    if str(sql).startswith("RELEASE SAVEPOINT") and not in_tested_transaction(connection):
        for hook in take_hooks(connection, first=first, kind=on_commit.CommitHook):
            hook()
    return result
