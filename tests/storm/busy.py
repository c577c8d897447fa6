"""Gives a fault exclusive use of servers and stores, so that faults do not undo each other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Busy:
    """The servers and stores that faults are using."""

    def __init__(self) -> None:
        self.used: set[object] = set()

    def __contains__(self, thing: object) -> bool:
        return thing in self.used

    @contextlib.contextmanager
    def using(self, *things: object) -> Iterator[None]:
        """Keep other faults from using these servers and stores during the block."""
        self.used.update(things)
        try:
            yield
        finally:
            self.used.difference_update(things)
