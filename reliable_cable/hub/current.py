"""Returns and closes the hub of the running event loop."""

from functools import partial

from reliable_cable.concurrency.per_loop import PerLoop
from reliable_cable.conf import get_settings
from reliable_cable.stores.engine import get_engine

from .hub import Hub

_hubs: PerLoop[Hub] = PerLoop()


def get_hub() -> Hub:
    """Return the hub of the running event loop. If there is none yet, or if the settings have changed, create it."""
    engine = get_engine()
    return _hubs.get(partial(Hub, engine, get_settings()), lambda hub: hub.engine is engine)


async def close_hub() -> None:
    """Close the hub of the running event loop, if there is one. All connections of the hub must have ended."""
    hub = _hubs.pop()
    if hub is not None:
        await hub.aclose()


def is_draining() -> bool:
    """Return whether the server of the running event loop is about to stop. This does not create a hub."""
    hub = _hubs.peek()
    return hub is not None and hub.draining
