"""What a process and its children have cost so far, as Linux accounts it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """CPU time of a process tree, and its memory.

    Args:
        cpu: seconds, user and system, to the nanosecond.
        user: seconds, in ticks of 10 ms.
        system: the same.
    """

    cpu: float
    user: float
    system: float

    def __sub__(self, other: Self) -> Usage:
        return Usage(self.cpu - other.cpu, self.user - other.user, self.system - other.system)

    @property
    def kernel_share(self) -> float:
        """How much of it was spent in the kernel, from 0 to 1."""
        return self.system / max(self.user + self.system, 1 / _TICKS)


def _fields(pid: int) -> list[str]:
    """Return what /proc/<pid>/stat has after the name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
    found, after = [pid], 0
    while after < len(found):
        found += children.get(found[after], [])
        after += 1
    return found


def usage(pid: int) -> Usage:
    """Return the CPU time of a process tree so far."""
    cpu = user = system = 0.0
    for number in tree(pid):
        with contextlib.suppress(OSError):
            # The clock of a process, as clock_getcpuclockid(3) makes its number.
            cpu += time.clock_gettime(~number << 3 | 2)
            fields = _fields(number)
            user, system = user + int(fields[11]) / _TICKS, system + int(fields[12]) / _TICKS
    return Usage(cpu, user, system)


def memory(pid: int) -> float:
    """Return the KiB of a process tree (Pss: what is shared counts in part)."""
    total = 0.0
    for number in tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
            total += sum(float(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
