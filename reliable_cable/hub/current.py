"""Returns, drains and closes the hub of the running event loop, and closes its connections."""

from functools import partial

from reliable_cable.concurrency.per_loop import PerLoop
from reliable_cable.conf import get_settings
from reliable_cable.stores.engine import Engine, get_engine

from .hub import Hub

_hubs: PerLoop[Hub] = PerLoop()
#: The event loops whose server is about to stop.
_draining: PerLoop[bool] = PerLoop()


def get_hub() -> Hub:
    """Return the hub of the running event loop. If there is none yet, or if the settings have changed, create it."""
    engine = get_engine()
    return _hubs.get(partial(_make_hub, engine), lambda hub: hub.engine is engine)


def _make_hub(engine: Engine) -> Hub:
    hub = Hub(engine, get_settings())
    # A request that arrived before the drain may create the first hub of the event loop while the drain is running.
    hub.draining = is_draining()
    return hub


async def close_hub() -> None:
    """Close the hub of the running event loop, if there is one. All connections of the hub must have ended."""
    hub = _hubs.pop()
    if hub is not None:
        await hub.aclose()


def begin_draining() -> Hub | None:
    """Refuse new connections in the running event loop, and return its hub; None if it has none."""
    _draining.get(lambda: True)
    hub = _hubs.peek()
    if hub is not None:
        hub.draining = True
    return hub


def close_connections() -> None:
    """Close all connections of the running event loop. Their clients reconnect."""
    hub = _hubs.peek()
    if hub is not None:
        hub.close_connections()


def is_draining() -> bool:
    """Return whether the server of the running event loop is about to stop. This does not create a hub."""
    hub = _hubs.peek()
    return bool(_draining.peek()) or (hub is not None and hub.draining)
