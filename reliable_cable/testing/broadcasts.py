"""Records the broadcasts that the tested code sends, and checks them."""

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
    """A broadcast that the tested code has sent.

    Args:
        stream: the name of the stream, without its namespace.
        data: the payload as clients receive it, after it was encoded as JSON and decoded.
        transient: whether the message was neither stored nor numbered, but sent only to the clients that were
            connected.
        exclude_socket: the id of the session that does not receive the message; None if all sessions receive it.
        namespace: the namespace of the stream; `""` if it has none.
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
    """Record all broadcasts that any thread sends in this context. `with … as captured` gets the list of broadcasts.

    A broadcast inside a transaction of the tested code is sent after the commit. If the transaction is rolled back, it
    is not sent. A broadcast whose `idempotency_key` was used before in the test is not sent either.

    In a `TestCase`, the `on_commit` hooks that the tested code has registered are called at the end of this context, as
    `captureOnCommitCallbacks(execute=True)` does. So their broadcasts are recorded, too. In an async test, the hooks
    are not called.
    """
    with captured_broadcasts() as captured:
        thread = threading.get_ident()
        before = {connection.alias: len(connection.run_on_commit) for connection in connections.all()}
        yield captured
        if threading.get_ident() == thread:
            _call_hooks(before)


@contextmanager
def captured_broadcasts() -> Iterator[list[CapturedBroadcast]]:
    """Record all broadcasts, as `capture_broadcasts` does, but call no `on_commit` hooks at the end."""
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
    """Call the `on_commit` hooks that the tested code has registered, and the hooks that these register in turn.

    Args:
        before: the number of hooks of each database before the tested code ran, by the alias of the database.
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
        count: the exact number of broadcasts to expect. None means one or more.
        matching: if this is given, only the broadcasts whose data match are counted. A dict matches a dict that has at
            least the same keys, with matching values. A function is called with the data, and returns whether the data
            match. Any other value matches equal data.

    Returns:
        A list of the broadcasts that were counted. The list is empty until the context ends.

    Raises:
        AssertionError: the number of broadcasts is not the expected one. The message lists all broadcasts.
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
        stream: the name of the stream. None means that no stream may receive a broadcast.
        matching: if this is given, only the broadcasts whose data match are forbidden. See `assert_broadcasts`.

    Raises:
        AssertionError: a forbidden broadcast was sent. The message lists all broadcasts.
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
