"""What a fault needs for itself, so that faults do not undo each other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .plan import now


class Busy:
    """The things that faults use right now."""

    def __init__(self) -> None:
        self._used: set[object] = set()
        self._released: dict[object, float] = {}

    def __contains__(self, thing: object) -> bool:
        return thing in self._used

    def idle(self, thing: object, seconds: float) -> bool:
        """Say whether no fault has used a thing for some seconds."""
        return thing not in self._used and now() >= self._released.get(thing, 0.0) + seconds

    @contextlib.contextmanager
    def using(self, *things: object) -> Iterator[None]:
        """Keep other faults from using some things."""
        self._used.update(things)
        try:
            yield
        finally:
            self._used.difference_update(things)
            self._released.update(dict.fromkeys(things, now()))
