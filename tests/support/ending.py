"""Runs a server like `python -m`, and ends it so that Python reports all resources that were not closed.

Without this, uvicorn ends itself with the signal that it received, and daphne does not close its event loop.
"""

from __future__ import annotations

import gc
import runpy
import signal
import sys

from django.core.signals import setting_changed


def main() -> None:
    """Run the module that the first argument names, with the other arguments."""
    signal.signal(
        signal.SIGTERM, lambda number, frame: None
    )  # uvicorn restores this handler, and then raises the signal again
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        from reliable_cable.hub import current, draining

        loops = list(current._hubs._objects)
        current._hubs._objects.clear()
        current._draining._objects.clear()
        draining._drains._objects.clear()
        setting_changed.send(None, setting="RELIABLE_CABLE", value=None, enter=False)
        for loop in loops:
            loop.close()
        del loops
        gc.collect()
        sys.stdout.write("The server has ended.\n")


if __name__ == "__main__":
    main()
