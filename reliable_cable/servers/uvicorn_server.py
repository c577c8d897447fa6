"""Runs uvicorn, and calls a function in the event loop before uvicorn listens.

`manage.py cable_serve` uses this module. This module needs uvicorn.
"""

import atexit
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from reliable_cable.concurrency.background import finish_workers


class StartingServer(uvicorn.Server):
    """uvicorn's server, which calls a function before it listens.

    Args:
        config: the configuration of the server.
        on_start: the function. It is called in the event loop, after uvicorn has installed its signal handlers.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: Any = None) -> None:
        """Call the function, and begin to listen."""
        self._on_start()
        await super().startup(sockets=sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs. Afterwards, uvicorn raises them again.

        SIGTERM then ends the process without calling the functions that are registered with `atexit`. So this method
        first waits for the background work.
        """
        with super().capture_signals():
            yield
            if signal.SIGTERM in self._captured_signals:
                finish_workers()
                # The signal, which uvicorn raises again, does not end PID 1 of a container. That process exits
                # normally, and must not wait for the background work a second time.
                atexit.unregister(finish_workers)


def run(application: Callable[..., Any], *, on_start: Callable[[], None], **options: Any) -> None:
    """Serve an application in this process until a signal stops the server.

    Args:
        application: the ASGI application.
        on_start: a function that is called in the event loop before the server listens.
        options: the other arguments of `uvicorn.Config`.
    """
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it after Ctrl-C has stopped the server
        StartingServer(uvicorn.Config(application, **options), on_start).run()
