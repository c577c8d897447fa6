"""Python's garbage collector, as a process with many connections needs it.

A full collection looks at every object, while nobody gets anything: 0.1 ms for each connection. By itself, Python has
one whenever objects have become a quarter more; of the time in which thousands of clients come back, that takes half.
"""

from __future__ import annotations

import gc

#: Collections of the middle generation until a full one, and how many Python lets pass by itself.
RARE, FORMER = 100, 10


def relax() -> None:
    """Let full collections be rarer, unless the project has set how often they come.

    They alone free what is left of connections that have gone: there is one for each 4,000 of these, or thereabouts.
    """
    youngest, middle, oldest = gc.get_threshold()
    if oldest == FORMER:
        gc.set_threshold(youngest, middle, RARE)
