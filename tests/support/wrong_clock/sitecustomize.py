"""Works around two bugs of libfaketime. Python runs this when a process starts, see tests/support/clock.py."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path


def _sleep(seconds: float) -> None:
    # Under libfaketime, `clock_nanosleep` with an absolute time fails if the monotonic clock is not faked.
    select.select([], [], [], seconds)


def _unlink_shared_memory() -> None:
    """Delete the library's files in /dev/shm now, so that none remain if the process is killed.

    Mapped memory stays usable.
    """
    semaphore, _, memory = os.environ.pop("FAKETIME_SHARED", "").partition(" ")
    for name in (f"sem.{semaphore.strip('/')}", memory.strip("/")):
        Path("/dev/shm", name).unlink(missing_ok=True)  # noqa: S108 - that is its place


if "FAKETIME_SHARED" in os.environ:
    time.sleep = _sleep  # type: ignore[assignment]
    _unlink_shared_memory()
