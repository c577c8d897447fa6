"""Finds out whether polls find messages that no notification announces."""

from reliable_cable.protocol.positions import StreamPosition

from .base import NOWHERE, Published
from .model_notices import Moved


class Unannounced:
    """Compares the positions that polls find with those that were announced.

    An announcement may arrive after a poll has found the message. So a message counts as unannounced only if its
    announcement has not arrived by the next poll.
    """

    def __init__(self) -> None:
        #: The newest announced position of each stream.
        self._heard: dict[str, StreamPosition] = {}
        #: The positions that the last poll has found, and that have not been announced so far.
        self._missing: dict[str, StreamPosition] = {}

    def hear(self, event: object) -> None:
        """Record an announcement. Announcements may arrive in any order. Events without a position are ignored."""
        if not isinstance(event, Published | Moved):
            return
        position = event.position
        if not _covers(self._heard.get(event.stream, NOWHERE), position):
            self._heard[event.stream] = position
        missing = self._missing.get(event.stream)
        if missing is not None and _covers(position, missing):
            del self._missing[event.stream]

    def find(self, stream: str, tail: StreamPosition) -> None:
        """Record a position that a poll has found."""
        if tail.offset and not _covers(self._heard.get(stream, NOWHERE), tail):
            self._missing[stream] = tail

    def check(self) -> bool:
        """Return whether positions that the last poll has found were not announced. Call this before each poll."""
        found = bool(self._missing)
        self._missing.clear()
        return found

    def forget(self, stream: str) -> None:
        """Forget a stream that is not subscribed any more."""
        self._heard.pop(stream, None)
        self._missing.pop(stream, None)


def _covers(heard: StreamPosition, position: StreamPosition) -> bool:
    """Return whether the announcement of a position shows that the message at another position was announced, too."""
    return heard.epoch == position.epoch and heard.offset >= position.offset
