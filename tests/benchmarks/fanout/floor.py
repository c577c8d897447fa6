"""The *floor*, to which fan-outs are compared: one `send()` for each socket, called from C if there is a compiler."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("floor.c")
#: The flags of `send()`.
FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


def compile_floor(folder: Path) -> Path | None:
    """Compile the C loop into a shared library, and return its path; None if there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = folder / "floor.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE], check=True, timeout=60)
    return library


class Floor:
    """Sends frames with the library that `CABLE_BENCH_FLOOR` names, or else by calling `send` from Python."""

    def __init__(self) -> None:
        path = os.environ.get("CABLE_BENCH_FLOOR")
        self._library = ctypes.CDLL(path) if path else None
        self._send = ctypes.CDLL(None).send
        #: The CPU time of sending, in seconds, and the number of frames that a socket did not accept completely.
        self.seconds, self.failed = 0.0, 0

    def send(self, sockets: list[int], frame: bytes) -> None:
        """Send a frame to each of the sockets, which are given by their file descriptors."""
        if self._library is not None:
            failed = ctypes.c_int(0)
            self._library.fan_out.restype = ctypes.c_longlong
            numbers = (ctypes.c_int * len(sockets))(*sockets)
            spent = self._library.fan_out(
                numbers, len(sockets), frame, ctypes.c_size_t(len(frame)), ctypes.byref(failed)
            )
            self.seconds += spent / 1e9
            self.failed += failed.value
            return
        started = time.thread_time()
        for number in sockets:
            self.failed += self._send(number, frame, len(frame), FLAGS) != len(frame)
        self.seconds += time.thread_time() - started
