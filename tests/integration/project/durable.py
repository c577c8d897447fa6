"""The rules for the durable streams of the project."""

from __future__ import annotations

from typing import Any

from reliable_cable.runs.durable.access import DurableStreams
from reliable_cable.runs.durable_models import DurableStream


class Streams(DurableStreams):
    """Users may create streams. Everybody may read those whose names begin with "open/", and nobody else may write."""

    max_streams = 10_000
    long_poll_time = 1.5

    def may_create(self, user: Any, name: str) -> bool:
        """Return whether the name is not reserved for tests."""
        return not name.startswith("closed/")

    def may_read(self, user: Any, stream: DurableStream) -> bool:
        """Return whether the user is the owner, or the stream is open."""
        return stream.name.startswith("open/") or super().may_read(user, stream)

    def may_write(self, user: Any, stream: DurableStream) -> bool:
        """Return whether the user is the owner."""
        return super().may_read(user, stream)
