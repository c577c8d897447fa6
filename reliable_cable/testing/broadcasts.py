"""Captures the broadcasts of the tested code, and asserts which of them there are."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connections

from reliable_cable.namespaces import split_namespace
from reliable_cable.validation import Outgoing

from .commits import in_tested_transaction, take_hooks
from .isolation import current_isolation, isolated


@dataclass(frozen=True, slots=True)
class CapturedBroadcast:
    """A broadcast that was sent.

    Args:
        stream: the name of the stream, without its namespace.
        data: the payload, as clients receive it: encoded as JSON and decoded.
        transient: whether the message was neither stored nor numbered.
        exclude_socket: the id of the session that does not receive the message; None: there is none.
        namespace: the namespace of the stream, or `""`.
    """

    stream: str
    data: Any
    transient: bool = False
    exclude_socket: str | None = None
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.stream!r}: {self.data!r}{' (transient)' if self.transient else ''}"


@contextmanager
def capture_broadcasts() -> Iterator[list[CapturedBroadcast]]:
    """Return a list to which each broadcast is added when it is sent, in all threads.

    A broadcast inside a transaction of the tested code is sent after its commit, and never if it is rolled back. One
    with an `idempotency_key` that was used before in the test is not sent.

    In a `TestCase`, the `on_commit` hooks that the tested code has registered are called at the end of this context, as
    `captureOnCommitCallbacks(execute=True)` does. So what they broadcast is captured, too. This needs a sync test.
    """
    with captured_broadcasts() as captured:
        thread = threading.get_ident()
        before = {connection.alias: len(connection.run_on_commit) for connection in connections.all()}
        yield captured
        if threading.get_ident() == thread:
            _call_hooks(before)


@contextmanager
def captured_broadcasts() -> Iterator[list[CapturedBroadcast]]:
    """Return a list to which each broadcast is added when it is sent. This calls no `on_commit` hooks."""
    captured: list[CapturedBroadcast] = []

    def capture(item: Outgoing) -> None:
        namespace, stream = split_namespace(item.stream)
        message = item.message
        captured.append(
            CapturedBroadcast(stream, json.loads(message.data), not item.kept, message.exclude or None, namespace)
        )

    with isolated():
        captures = current_isolation().captures
        captures.append(capture)
        try:
            yield captured
        finally:
            captures.remove(capture)


def _call_hooks(before: Mapping[str, int]) -> None:
    """Call the `on_commit` hooks that were registered since then, and those that these register.

    Args:
        before: the number of hooks at that time, by the alias of the database.
    """
    for connection in connections.all():
        if not connection.in_atomic_block or in_tested_transaction(connection):
            continue
        first = before.get(connection.alias, 0)
        while hooks := take_hooks(connection, first=first):
            for hook in hooks:
                hook()


@contextmanager
def assert_broadcasts(
    stream: str, count: int | None = None, *, matching: Any = None
) -> Iterator[list[CapturedBroadcast]]:
    """Assert that the code in this context broadcasts to a stream.

    Args:
        stream: the name of the stream. `ChatChannel.broadcasting_for(room)` returns the name for a target.
        count: how many broadcasts there must be, no more and no less. None: one or more.
        matching: count only the broadcasts whose data match. A dict matches data that have these keys with matching
            values, and perhaps others. A function matches if it returns True for the data. Any other value matches
            data that are equal to it. None: count all.

    Returns:
        The list of those that match. It is filled at the end of the context.

    Raises:
        AssertionError: there were others, or not so many. The message shows what was broadcast.
    """
    found: list[CapturedBroadcast] = []
    with capture_broadcasts() as captured:
        yield found
    found += [each for each in captured if each.stream == stream and _matches(matching, each.data)]
    if len(found) == count or (count is None and found):
        return
    expected = "at least 1 broadcast" if count is None else f"{count} broadcast{'' if count == 1 else 's'}"
    raise AssertionError(
        f"Expected {expected} to {stream!r}{_described(matching)}, but there were {len(found)}. {_listed(captured)}"
    )


@contextmanager
def assert_no_broadcasts(stream: str | None = None, *, matching: Any = None) -> Iterator[None]:
    """Assert that the code in this context does not broadcast.

    Args:
        stream: the name of the stream. None: it must not broadcast to any stream.
        matching: as for `assert_broadcasts`.

    Raises:
        AssertionError: there was a broadcast. The message shows what was broadcast.
    """
    with capture_broadcasts() as captured:
        yield
    if any(stream in (None, each.stream) and _matches(matching, each.data) for each in captured):
        place = "" if stream is None else f" to {stream!r}"
        raise AssertionError(f"Expected no broadcast{place}{_described(matching)}. {_listed(captured)}")


def _matches(pattern: Any, data: Any) -> bool:
    if pattern is None:
        return True
    if callable(pattern):
        return bool(pattern(data))
    return _contains(data, pattern)


def _contains(data: Any, pattern: Any) -> bool:
    if isinstance(pattern, Mapping):
        return isinstance(data, Mapping) and all(
            key in data and _contains(data[key], value) for key, value in pattern.items()
        )
    return bool(data == pattern)


def _described(pattern: Any) -> str:
    return "" if pattern is None else f" matching {pattern!r}"


def _listed(captured: Sequence[CapturedBroadcast]) -> str:
    if not captured:
        hint = ""
        if waiting := [each.alias for each in connections.all() if in_tested_transaction(each)]:
            hint = f" A transaction is still open on {', '.join(map(repr, waiting))}; broadcasts wait for its commit."
        elif _is_async():
            hint = " In an async test, functions that were passed to `on_commit` are not called."
        return f"Nothing was broadcast.{hint}"
    lines = "".join(f"\n  {each}" for each in captured)
    return f"These were broadcast:{lines}"


def _is_async() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
