"""Runs a server as `python -m` does, to an end at which everything that was left open is told of.

By itself uvicorn ends by the signal that it got, and daphne leaves its event loop to the interpreter.
"""

from __future__ import annotations

import gc
import runpy
import signal
import sys

from django.core.signals import setting_changed


def main() -> None:
    """Run the module that is named first, with the other arguments."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # what uvicorn restores, and then raises
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        from reliable_cable import consumer

        loops = list(consumer._hubs)
        consumer._hubs.clear()
        consumer._drains.clear()
        setting_changed.send(None, setting="RELIABLE_CABLE", value=None, enter=False)
        for loop in loops:
            loop.close()
        del loops
        gc.collect()
        sys.stdout.write("The server has ended.\n")


if __name__ == "__main__":
    main()
