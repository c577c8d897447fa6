"""The environment of processes with a wrong wall clock, which libfaketime simulates."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The paths of libfaketime below `/usr`: the path of Debian's package, and paths of other systems.
FAKETIME = ("lib/*/faketime/libfaketime.so.1", "lib*/faketime/libfaketime.so.1", "local/lib/faketime/libfaketime.so.1")


def find_faketime() -> Path | None:
    """Return the path of libfaketime; None if it is not installed."""
    places = (path for pattern in FAKETIME for path in sorted(Path("/usr").glob(pattern)))
    return next(places, None)


def wrong_clock(seconds: float) -> dict[str, str]:
    """Return the environment of a process whose wall clock is ahead. Its other clocks are correct.

    Args:
        seconds: how far, in seconds, the wall clock is ahead. If the number is negative, the wall clock is behind.

    Raises:
        RuntimeError: libfaketime is not installed.
    """
    library = find_faketime()
    if library is None:
        raise RuntimeError("libfaketime is not installed; wrong clocks need it (Debian: libfaketime)")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+g}s",
        # The name of this variable differs between versions of the library.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        # Without this value, waits on a monotonic clock end at once, and threads that wait for Python's GIL slow down
        # other threads.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        # The times of files stay real, because Python compares these times with the ones that it recorded in bytecode
        # files.
        "NO_FAKE_STAT": "1",
        # `sitecustomize` in the first folder works around faults of the library.
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "wrong_clock"), str(ROOT)]),
    }
