"""The hub of the running event loop."""

import asyncio
import weakref

from reliable_cable.conf import get_settings
from reliable_cable.stores.engine import get_engine

from .hub import Hub

_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = weakref.WeakKeyDictionary()


def get_hub() -> Hub:
    """Return the hub of the running event loop. After a change of settings, this is a new one."""
    loop = asyncio.get_running_loop()
    engine, settings = get_engine(), get_settings()
    hub = _hubs.get(loop)
    if hub is None or hub.engine is not engine:
        for other in [other for other in _hubs if other.is_closed()]:
            del _hubs[other]
        hub = _hubs[loop] = Hub(engine, settings)
    return hub


async def close_hub() -> None:
    """Close the hub of the running event loop, if there is one. All its connections must have ended."""
    hub = _hubs.pop(asyncio.get_running_loop(), None)
    if hub is not None:
        await hub.aclose()


def is_draining() -> bool:
    """Return whether the server of the running event loop is about to stop. This does not create a hub."""
    hub = _hubs.get(asyncio.get_running_loop())
    return hub is not None and hub.draining
