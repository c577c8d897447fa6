"""Installs the signal handler that drains the hub of the running event loop."""

import asyncio
from functools import partial

from reliable_cable.concurrency.per_loop import PerLoop
from reliable_cable.logs import logger
from reliable_cable.servers.drain import Drain

from .current import begin_draining, close_connections
from .hub import Hub

_drains: PerLoop[Drain] = PerLoop()


def install_drain(grace: float = 0.0) -> None:
    """Drain the hub of the running event loop when the server receives SIGTERM, and close its connections after SIGINT.

    Repeated calls for the same server have no further effect.

    Args:
        grace: how long, in seconds, the server is configured to wait for open requests after the drain.
    """
    _drains.get(partial(_install, grace), lambda drain: drain.is_current)


def refuses_connections(hub: Hub) -> bool:
    """Return whether the hub of the running event loop accepts no new connections, because the server is stopping."""
    if hub.draining:
        return True
    drain = _drains.peek()
    return drain is not None and drain.server_is_stopping


def _install(grace: float) -> Drain:
    drain = Drain(begin_draining, close_connections, asyncio.get_running_loop(), grace=grace)
    if not drain.install():
        logger.debug("Connections will not be drained before shutdown: this is not the main thread.")
    return drain
