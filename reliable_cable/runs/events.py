"""The events on the stream of a run, and the name of the stream.

Each event is a dict with its name as `event`, and with the number of the `attempt` to which it belongs.
"""

from collections.abc import Mapping
from typing import Any, Final

STREAM_PREFIX: Final = "run:"

#: The names of events.
SNAPSHOT: Final = "snapshot"
START: Final = "start"
CHUNK: Final = "chunk"
PART: Final = "part"
COMPLETE: Final = "complete"
STOPPED: Final = "stopped"
ERROR: Final = "error"


def stream_of(run: object) -> str:
    """Return the name of the stream of a run.

    Args:
        run: the id of the run.
    """
    return f"{STREAM_PREFIX}{run}"


def start(attempt: int) -> dict[str, Any]:
    """Return the event with which an attempt starts. Readers drop what they have from former attempts."""
    return {"event": START, "attempt": attempt}


def chunk(attempt: int, content: str) -> dict[str, Any]:
    """Return the event for more text."""
    return {"event": CHUNK, "attempt": attempt, "content": content}


def part(attempt: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the event for a part, or for more text of the reasoning that is the last part."""
    return {"event": PART, "attempt": attempt, "part": dict(content)}
