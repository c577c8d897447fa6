"""Gates: a handler waits at one until the test opens it, and the test can see how many came."""

from __future__ import annotations

import threading
from collections import defaultdict

PATIENCE = 30.0


class Gate:
    """Closed until `open` is called; the time that anybody waits is bounded."""

    def __init__(self) -> None:
        self.entered = 0
        self._opened = threading.Event()
        self._entered = threading.Condition()

    def enter(self) -> None:
        """Come to the gate, and wait until it is open."""
        with self._entered:
            self.entered += 1
            self._entered.notify_all()
        self._opened.wait(PATIENCE)

    def open(self) -> int:
        """Open it for good; return how many have come to it so far."""
        self._opened.set()
        return self.entered

    def wait_for(self, count: int) -> int:
        """Wait until `count` have come; return how many it were."""
        with self._entered:
            self._entered.wait_for(lambda: self.entered >= count, PATIENCE)
            return self.entered


gates: defaultdict[str, Gate] = defaultdict(Gate)
