"""Drains a server before it stops, which means that its connections are closed one after another.

daphne and uvicorn close all sockets as soon as they receive SIGTERM. All clients would reconnect at the same time, and
commands in progress would not be answered. So this module replaces the server's signal handler. The new handler closes
the connections over `DRAIN_TIME`, closes the hub, and then calls the server's handler.

Even so, the process might not stop. The server waits for its applications, Python waits for threads at exit, and a
thread that waits for a database cannot be interrupted. So a timer ends the process `STOP_LIMIT` seconds after the
signal.

uvicorn waits without a limit for responses that do not end. If its first such response began after the signal, nothing
would stop the process. So if the server is already stopping when the handler is installed, the drain begins at once.

After SIGINT (Ctrl-C), the server's own handler is called immediately. In addition, all connections are closed, and new
ones are refused. Otherwise, uvicorn would wait for pages that read server-sent events. There is no drain and no timer,
because the program may continue, and may start a server again.
"""

import _thread
import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from reliable_cable.concurrency.threads import busy_threads
from reliable_cable.logs import logger

#: The time, in seconds, over which the connections are closed, so that not all clients reconnect at once.
DRAIN_TIME = 1.5
#: How long, in seconds, to wait for all connections to close.
DRAIN_LIMIT = 5.0
#: How long, in seconds, to wait for the stores to close.
CLOSE_LIMIT = 3.0
#: How long, in seconds, the process may take to stop. It may take longer if the server is configured to wait longer for
#: open requests.
STOP_LIMIT = 11.0
#: How long, in seconds, to wait until the end of the process is logged. Another thread may hold the lock of the log.
REPORT_LIMIT = 1.0

#: The signals whose handlers are replaced.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class DrainableHub(Protocol):
    """The methods of a hub that `Drain` calls."""

    async def drain(self, duration: float) -> None:
        """Refuse new connections, and close all connections, spread over `duration` seconds."""

    async def aclose(self) -> None:
        """Close the hub and its stores."""


class Drain:
    """The handler of SIGTERM and SIGINT.

    After SIGTERM, it drains a hub, and then calls the server's own handler of the signal. After SIGINT, it calls the
    server's own handler, and closes the hub's connections.

    Args:
        begin: a function that makes the event loop refuse new connections, and returns its hub, or None without a hub.
        close_connections: a function that closes all connections of the hub. It is called after SIGINT.
        loop: the event loop of the hub.
        grace: how long, in seconds, the server is configured to wait for open requests after the drain.
    """

    def __init__(
        self,
        begin: Callable[[], DrainableHub | None],
        close_connections: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        *,
        grace: float = 0.0,
    ) -> None:
        self._begin_draining = begin
        self._close_connections = close_connections
        self._loop = loop
        self._limit = max(STOP_LIMIT, DRAIN_LIMIT + CLOSE_LIMIT + grace)
        self._previous: dict[int, Any] = {}
        self._limited = False
        self._task: asyncio.Task[None] | None = None

    def install(self) -> bool:
        """Replace the current signal handlers. If the server is already stopping, begin to drain.

        Call this in the event loop of the hub.

        Returns:
            True if the handler of SIGTERM was replaced. This is only possible in the main thread, and only if the
            handler is written in Python. The handler of SIGINT is replaced under the same condition.
        """
        if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGTERM)):
            return False
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if callable(previous):  # SIGINT may be ignored, for example if a script has started the process with `&`
                self._previous[number] = previous
                signal.signal(number, self._handle)
        if self.server_is_stopping:
            self._limit_time()
            self._begin(None)
        return True

    @property
    def is_current(self) -> bool:
        """Whether the process's handler of SIGTERM is still this one, or that of the same server.

        It is also True if the handler could not be replaced.
        """
        current = signal.getsignal(signal.SIGTERM)
        return not self._previous or current in (self._handle, self._previous[signal.SIGTERM])

    @property
    def server_is_stopping(self) -> bool:
        """Whether the server has already received a signal. Only uvicorn is recognised."""
        return _is_stopping(self._previous.get(signal.SIGTERM))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._close_connections)
            self._previous[number](number, frame)
            return
        if self._task is not None or self._loop.is_closed():
            self._call_previous(number)  # a second signal stops the server immediately
            return
        self._loop.call_soon_threadsafe(self._begin, number)
        # The time is limited here and not in `_begin`, because a handler may block the event loop.
        self._limit_time()

    def _limit_time(self) -> None:
        """Start the timer that ends the process."""
        if self._limited:
            return
        self._limited = True
        # A signal handler must not start a `threading.Thread`. The signal may have interrupted the start of another
        # thread, which holds a lock that both need.
        with contextlib.suppress(RuntimeError):  # raised if no thread can be started
            _thread.start_new_thread(_end_later, (self._limit,))

    def _begin(self, number: int | None) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._drain(number, self._refuse_connections()))

    def _refuse_connections(self) -> DrainableHub | None:
        try:
            return self._begin_draining()
        except Exception:
            logger.exception("New connections cannot be refused. The server stops nevertheless.")
            return None

    async def _drain(self, number: int | None, hub: DrainableHub | None) -> None:
        try:
            if hub is not None:
                await _drain_and_close(hub)
        except Exception:
            logger.exception("Draining failed. The server stops nevertheless.")
        finally:
            if number is not None:  # otherwise, the server is already stopping
                self._call_previous(number)

    def _call_previous(self, number: int) -> None:
        signal.signal(number, self._previous[number])
        self._previous[number](number, None)


async def _drain_and_close(hub: DrainableHub) -> None:
    try:
        async with asyncio.timeout(DRAIN_LIMIT):
            await hub.drain(DRAIN_TIME)
    except TimeoutError:
        logger.warning("Some connections could not be drained in %s seconds. The server closes them.", DRAIN_LIMIT)
    try:
        async with asyncio.timeout(CLOSE_LIMIT):
            await hub.aclose()
    except TimeoutError:
        logger.warning("The stores could not be closed in %s seconds. The server stops nevertheless.", CLOSE_LIMIT)


def _is_stopping(handler: Any) -> bool:
    """Return whether the server with this signal handler has already received a signal. Only uvicorn is recognised.

    daphne need not be recognised, because it cancels all requests when it stops.
    """
    return bool(getattr(getattr(handler, "__self__", None), "should_exit", False))


def server_grace() -> float | None:
    """Return how long, in seconds, the server of this process is configured to wait for requests when it stops.

    Return 0 if no time is configured. The server is recognised by the module of its SIGTERM handler. Return None if it
    is neither daphne nor uvicorn, or if a `Drain` has already replaced the handler.
    """
    handler = signal.getsignal(signal.SIGTERM)
    package = (getattr(handler, "__module__", None) or "").partition(".")[0]
    if package == "uvicorn":
        config = getattr(getattr(handler, "__self__", None), "config", None)
        return getattr(config, "timeout_graceful_shutdown", None) or 0.0
    return 0.0 if package == "twisted" else None


def _end_later(limit: float) -> None:
    time.sleep(limit)
    end_process(limit)


def end_process(limit: float) -> None:
    """End the process immediately, even if threads are running.

    Args:
        limit: the time, in seconds, that the process was given to stop. The log message contains it.
    """
    # Another thread may hold a lock that the report needs, for example because it writes to a pipe that is full.
    reported = threading.Event()
    with contextlib.suppress(RuntimeError):  # raised if no thread can be started
        _thread.start_new_thread(_report, (limit, reported))
        reported.wait(REPORT_LIMIT)
    os._exit(0)


def _report(limit: float, reported: threading.Event) -> None:
    try:
        threads = [thread.name for thread in threading.enumerate() if not thread.daemon] + busy_threads()
        logger.error(
            "The process did not stop in %g seconds and is ended now. These threads are still running: %s.",
            limit,
            ", ".join(threads),
        )
    finally:
        reported.set()
