"""Reads the CPU time and the memory of a process and its children from Linux."""

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
    """The CPU time of a process tree.

    Args:
        cpu: the CPU time in seconds, with a resolution of nanoseconds.
        user: the CPU time outside of the kernel in seconds, with a resolution of 10 ms.
        system: the CPU time in the kernel in seconds, with a resolution of 10 ms.
    """

    cpu: float
    user: float
    system: float

    def __sub__(self, other: Self) -> Usage:
        return Usage(self.cpu - other.cpu, self.user - other.user, self.system - other.system)

    @property
    def kernel_share(self) -> float:
        """The share of the CPU time that was spent in the kernel, from 0 to 1."""
        return self.system / max(self.user + self.system, 1 / _TICKS)


def _fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat after the name: the state, the parent, and so on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(pid: int) -> list[int]:
    """Return the ids of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
    pids, index = [pid], 0
    while index < len(pids):
        pids += children.get(pids[index], [])
        index += 1
    return pids


def usage(pid: int) -> Usage:
    """Return the CPU time that a process tree has used so far."""
    cpu = user = system = 0.0
    for number in tree(pid):
        with contextlib.suppress(OSError):
            # The id of the CPU clock of a process, as clock_getcpuclockid(3) computes it.
            cpu += time.clock_gettime(~number << 3 | 2)
            fields = _fields(number)
            user, system = user + int(fields[11]) / _TICKS, system + int(fields[12]) / _TICKS
    return Usage(cpu, user, system)


def memory(pid: int) -> float:
    """Return the memory of a process tree, in KiB.

    It is the sum of Pss, in which each shared page is divided by the number of processes that map it.
    """
    total = 0.0
    for number in tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
            total += sum(float(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
