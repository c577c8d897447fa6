"""Processes whose wall clock is wrong, by libfaketime."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find_faketime() -> Path | None:
    """Return the library, or None."""
    places = sorted(path for lib in ("/usr/lib", "/usr/local/lib") for path in Path(lib).glob("**/libfaketime.so.1"))
    return next(iter(places), None)


def wrong_clock(seconds: float) -> dict[str, str]:
    """Return the environment of a process whose wall clock is ahead by some seconds; its other clocks are right.

    Raises:
        RuntimeError: there is no libfaketime.
    """
    library = find_faketime()
    if library is None:
        raise RuntimeError("no libfaketime on this machine (Debian: libfaketime); wrong clocks need it")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+g}s",
        # Versions of the library differ in the name.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        # Python compares the times of files with those that it noted.
        "NO_FAKE_STAT": "1",
        # The first folder's `sitecustomize` mends what is wrong with the library itself.
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "wrong_clock"), str(ROOT)]),
    }
