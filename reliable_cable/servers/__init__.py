"""What an ASGI server needs added: the buffer behind `send`, and draining before shutdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import FRAMES_EXTENSION, Transport

#: How many wrappers of middlewares are looked behind.
_DEPTH = 8


def transport_for(scope: Mapping[str, Any], send: Any) -> Transport:
    """Return what is known of a connection: what its scope offers, or what is behind its `send`, wrapped or not."""
    from . import daphne, uvicorn

    offered = (scope.get("extensions") or {}).get(FRAMES_EXTENSION)
    if isinstance(offered, Transport):
        return offered

    seen = [send]
    for _ in range(_DEPTH):
        wrapped: list[Any] = []
        for candidate in seen:
            found = daphne.transport_for(candidate) or uvicorn.transport_for(candidate)
            if found is not None:
                return found
            wrapped += _wrapped(candidate)
        seen = wrapped
    return Transport(send)


def _wrapped(send: Any) -> list[Any]:
    """Return the callables that a wrapper of `send` holds: in its closure, or as `…send` on its object."""
    owner = getattr(send, "__self__", None)
    function = getattr(send, "__func__", send)
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _filled(cell)]
    attributes = [value for name, value in getattr(owner, "__dict__", {}).items() if name.endswith("send")]
    return [value for value in cells + attributes if callable(value)]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises if empty
    except ValueError:
        return False
    return True
