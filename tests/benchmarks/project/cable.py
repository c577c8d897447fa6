"""The channel that the load client subscribes to."""

from __future__ import annotations

from reliable_cable import Channel


class BenchChannel(Channel):
    """Streams from what the params name."""

    def subscribed(self) -> None:
        """Start the stream."""
        self.stream_from(self.params["stream"])
