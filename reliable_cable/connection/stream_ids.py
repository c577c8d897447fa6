"""Stream ids: the names under which a client knows its streams. The client keeps one position for each stream id.

See Protocol: Stream ids.
"""

import hashlib

from reliable_cable.protocol.positions import HistoryRequest


def stream_alias(stream: str, identifier: str) -> str:
    """Return an alias: the stream id that an identifier gets if another identifier already uses the stream's name."""
    digest = hashlib.blake2b(f"{stream}\0{identifier}".encode(), digest_size=9).hexdigest()
    return f"{stream}#{digest}"


class StreamIds:
    """The stream ids of one connection.

    Args:
        extended: whether the client speaks the extended protocol. Other clients get no positions.
    """

    __slots__ = ("_extended", "_owners")

    def __init__(self, *, extended: bool) -> None:
        self._extended = extended
        #: For each stream, the identifier of the subscription whose stream id is the name of the stream.
        self._owners: dict[str, str] = {}

    def claim(self, stream: str, identifier: str, request: HistoryRequest | None) -> str | None:
        """Return the stream id that an identifier gets, or None for a base client.

        The first identifier that subscribes to a stream gets the name of the stream, and each other identifier gets an
        alias. If the client already has an alias for the identifier, the identifier keeps it, because the client may
        have the position of another identifier under the name of the stream.
        """
        if not self._extended:
            return None
        if request is not None and request.streams and (alias := stream_alias(stream, identifier)) in request.streams:
            return alias
        if self._owners.setdefault(stream, identifier) == identifier:
            return stream
        return stream_alias(stream, identifier)

    def take(self, stream: str, identifier: str, stream_id: str) -> None:
        """Give a restored subscription the stream id that it had in the former session."""
        if stream_id == stream:
            self._owners[stream] = identifier

    def release(self, stream: str, identifier: str) -> None:
        """Allow another identifier to use the name of the stream as its stream id."""
        if self._owners.get(stream) == identifier:
            del self._owners[stream]
