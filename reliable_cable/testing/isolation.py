"""Isolates tests from each other. Each test gets empty stores. Its connections and threads end with the test."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from reliable_cable import broadcasting, conf
from reliable_cable.concurrency.django_thread import close_shared_connections
from reliable_cable.concurrency.threads import end_threads
from reliable_cable.consumer import close_hub
from reliable_cable.validation import Outgoing

from .commits import commits_of_tested_code
from .loop_thread import LoopThread

#: How long, in seconds, to wait at the end of a test until its threads have ended.
END_TIMEOUT = 5.0


class Isolation:
    """The resources of one test, which are released at its end."""

    def __init__(self) -> None:
        self._loop_thread: LoopThread | None = None
        #: The callbacks for the end of the test. They run before its event loop is closed.
        self.cleanups = ExitStack()
        #: The functions to call with each broadcast that is sent.
        self.captures: list[Callable[[Outgoing], object]] = []
        self._keys: set[tuple[str, str]] = set()

    @property
    def loop_thread(self) -> LoopThread:
        """The event loop of a sync test. It is created when it is first needed."""
        if self._loop_thread is None:
            self._loop_thread = LoopThread()
        return self._loop_thread

    def observe(self, batch: Sequence[Outgoing]) -> None:
        """Pass broadcasts to the functions in `captures`, except broadcasts whose `idempotency_key` was used before."""
        for item in batch:
            key = item.stream, item.message.idempotency_key
            if key not in self._keys:
                for capture in self.captures:
                    capture(item)
            if key[1]:
                self._keys.add(key)

    def close(self) -> None:
        """Run the cleanups, then close the event loop and its hub."""
        try:
            self.cleanups.close()
        finally:
            if self._loop_thread is not None:
                self._loop_thread.run(close_hub())
                self._loop_thread.close()


_isolations: list[Isolation] = []


def current_isolation() -> Isolation:
    """Return the isolation of the running test.

    Raises:
        RuntimeError: the test does not run in `isolated_cable()`.
    """
    if not _isolations:
        raise RuntimeError(
            "This test is not isolated. Use reliable_cable.testing.CableTestCase or CableTestMixin, the pytest plugin, "
            "or `with isolated_cable():`."
        )
    return _isolations[-1]


@contextmanager
def isolated_cable(**settings: Any) -> Iterator[None]:
    """Run the code in this context with its own empty stores, and with settings for tests.

    By default, the stores are in memory, and sync handlers run in the thread of the test and in its transaction. So
    tests need no server, and do not affect each other. In a `TestCase`, a broadcast waits only for the transactions of
    the tested code. It is sent when the outermost `atomic()` of that code ends.

    `CableTestCase`, `CableTestMixin` and the pytest plugin run each test in this context.

    Args:
        settings: keys of `RELIABLE_CABLE`, such as `ENGINE="redis"`. They override the settings of the project. Each
            context has a random `KEY_PREFIX`, and at its end deletes its keys in Redis. If `KEY_PREFIX` is given here,
            no keys are deleted.
    """
    defaults: dict[str, Any] = {"HANDLER_THREADS": 0, "KEY_PREFIX": f"cable-test-{secrets.token_hex(8)}"}
    if settings.get("BROADCAST_ADAPTER") is None:
        # The tests of a project that uses anycable-go must also run without anycable-go.
        defaults |= {"ENGINE": "memory", "BROADCAST_ADAPTER": None}
    values = {**defaults, **settings}
    isolation = Isolation()
    with conf.overridden(values), commits_of_tested_code():
        _isolations.append(isolation)
        broadcasting.observers.append(isolation.observe)
        try:
            yield
        finally:
            broadcasting.observers.remove(isolation.observe)
            try:
                isolation.close()
                if "KEY_PREFIX" not in settings:
                    _delete_keys(conf.get_settings())
            finally:
                _isolations.remove(isolation)
                # The threads must close their connections, because a test database cannot be dropped while it has any.
                end_threads(END_TIMEOUT)
                close_shared_connections(END_TIMEOUT)


def isolated() -> AbstractContextManager[None]:
    """Return `isolated_cable()`. If the running test is already isolated, return a context that does nothing."""
    return nullcontext() if _isolations else isolated_cable()


def _delete_keys(settings: conf.CableSettings) -> None:
    """Delete the keys of a test in Redis, if its engine uses Redis."""
    if settings.engine not in ("memory", "database") and settings.redis_url:
        from reliable_cable.stores.redis.cleaning import delete_keys

        delete_keys(settings)
