"""The events that are broadcast to the stream of a run, and the name of this stream.

Each event is a dict. Its key `event` contains the name of the event, and its key `attempt` the number of the attempt.
"""

from collections.abc import Mapping
from typing import Any, Final

STREAM_PREFIX: Final = "run:"
#: The prefix of the names of the streams that contain the data of durable streams.
DURABLE_PREFIX: Final = "durable:"

#: The values of the key `event`.
SNAPSHOT: Final = "snapshot"
START: Final = "start"
CHUNK: Final = "chunk"
PART: Final = "part"
COMPLETE: Final = "complete"
STOPPED: Final = "stopped"
ERROR: Final = "error"

#: The events that end an attempt.
ENDS: Final = (COMPLETE, STOPPED, ERROR)


def stream_of(run: object) -> str:
    """Return the name of the stream of a run.

    Args:
        run: the id of the run.
    """
    return f"{STREAM_PREFIX}{run}"


def start(attempt: int) -> dict[str, Any]:
    """Return the event with which an attempt starts. Readers then drop the answer of former attempts."""
    return {"event": START, "attempt": attempt}


def chunk(attempt: int, content: str) -> dict[str, Any]:
    """Return the event for text that is appended to the answer."""
    return {"event": CHUNK, "attempt": attempt, "content": content}


def part(attempt: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the event for a part of the answer. Reasoning that directly follows reasoning is joined to it."""
    return {"event": PART, "attempt": attempt, "part": dict(content)}


def content_of(event: Mapping[str, Any]) -> str | Mapping[str, Any] | None:
    """Return the text or the part that an event adds to the answer. None means that it adds nothing."""
    item: str | Mapping[str, Any] | None = None
    if event["event"] == CHUNK:
        item = event["content"]
    elif event["event"] == PART:
        item = event["part"]
    return item
