"""Gates: a handler waits at a gate until a test opens it. The test can count the waiting handlers."""

from __future__ import annotations

import threading
from collections import defaultdict

PATIENCE = 30.0


class Gate:
    """A gate that is closed until `open` is called. Waiting at it has a timeout."""

    def __init__(self) -> None:
        self.entered = 0
        self._opened = threading.Event()
        self._entered = threading.Condition()

    def enter(self) -> None:
        """Record that a handler has reached the gate, and wait until the gate is open."""
        with self._entered:
            self.entered += 1
            self._entered.notify_all()
        self._opened.wait(PATIENCE)

    def open(self) -> int:
        """Open the gate permanently. Return how many handlers have reached it."""
        self._opened.set()
        return self.entered

    def wait_for(self, count: int) -> int:
        """Wait until `count` handlers have reached the gate. Return how many have."""
        with self._entered:
            self._entered.wait_for(lambda: self.entered >= count, PATIENCE)
            return self.entered


gates: defaultdict[str, Gate] = defaultdict(Gate)
