"""The rules for the durable streams of the project."""

from __future__ import annotations

from typing import Any

from reliable_cable.runs.durable.access import DurableStreams
from reliable_cable.runs.durable_models import DurableStream


class Streams(DurableStreams):
    """Lets users create streams, and lets everybody use the streams of the conformance suite, in "v1/".

    Everybody may also read streams in "open/".
    """

    login_required = False
    max_streams = 10_000
    long_poll_time = 1.5

    def may_create(self, user: Any, name: str) -> bool:
        """Return whether the user is logged in, or the conformance suite uses the name."""
        return user.is_authenticated or name.startswith("v1/")

    def may_read(self, user: Any, stream: DurableStream) -> bool:
        """Return whether the user is the owner, or everybody may read the stream."""
        return stream.name.startswith(("v1/", "open/")) or super().may_read(user, stream)

    def may_write(self, user: Any, stream: DurableStream) -> bool:
        """Return whether the user is the owner, or the stream is one of the conformance suite."""
        return stream.name.startswith("v1/") or super().may_read(user, stream)
