"""The channel that the load clients subscribe to."""

from __future__ import annotations

from reliable_cable import Channel, action


class BenchChannel(Channel):
    """Sends the messages of the stream that the params name."""

    def subscribed(self) -> None:
        """Subscribe to the stream."""
        self.stream_from(self.params["stream"], whisper=bool(self.params.get("whisper")))

    @action
    async def nothing(self) -> None:
        """Do nothing, in the event loop."""

    @action
    def sync_nothing(self) -> None:
        """Do nothing, in a thread."""

    @action
    async def answer(self) -> None:
        """Transmit an answer."""
        self.transmit({"answer": 1})
