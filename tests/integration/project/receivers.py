"""Records the presence signals of all processes as lines of JSON in the file that an environment variable names."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from reliable_cable.signals import presence_joined, presence_left

FILE = os.environ.get("CABLE_TEST_SIGNALS", "")


def _joined(sender: object, *, stream: str, id: str, **kwargs: Any) -> None:  # noqa: A002 - the signal's name
    _note("join", stream, id)


def _left(sender: object, *, stream: str, id: str, **kwargs: Any) -> None:  # noqa: A002 - the signal's name
    _note("leave", stream, id)


def _note(kind: str, stream: str, id_: str) -> None:
    # The monotonic clock is the same in all processes of a machine, even in processes with a wrong wall clock.
    line = json.dumps({"type": kind, "stream": stream, "id": id_, "at": time.monotonic(), "pid": os.getpid()})
    with Path(FILE).open("a") as file:
        file.write(line + "\n")  # a single short write, so that lines of several processes do not mix


def connect() -> None:
    """Connect the receivers if the environment variable is set."""
    if FILE:
        presence_joined.connect(_joined, dispatch_uid="tests")
        presence_left.connect(_left, dispatch_uid="tests")
