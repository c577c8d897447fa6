"""Batches of messages whose streams are in several parts of a store, such as the slots of a Redis Cluster."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, InvalidOption
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.base import Store

#: A function that returns the part of the store that has a stream (see `StreamStore.shard`).
Shard = Callable[[str], str]


def split_by_shard(shard: Shard, items: Sequence[tuple[str, Any]]) -> list[list[int]]:
    """Return the indexes of `items`, grouped by the part of the store, in the order of their first messages.

    Args:
        shard: a function that returns the part that has a stream.
        items: pairs of a stream's name and a message.
    """
    parts: dict[str, list[int]] = {}
    for number, (stream, _) in enumerate(items):
        parts.setdefault(shard(stream), []).append(number)
    return list(parts.values())


def require_one_shard(shard: Shard, streams: Collection[str]) -> None:
    """Check that one call can store either all messages to these streams, or none.

    Raises:
        InvalidOption: the streams are in different parts of the store.
    """
    if len(streams) > 1 and len({shard(stream) for stream in streams}) > 1:
        raise InvalidOption(
            f"Nothing was broadcast: the batch has {len(streams)} streams, which are in different slots of the Redis "
            "Cluster, so its messages cannot be stored all or none. Pass atomic=False, so that the messages of each "
            "slot are stored, one slot after another, or call broadcast for each of them."
        )


class PartedStore(Store):
    """A store whose streams may be in several parts. Each part stores either all messages of a call, or none."""

    @abstractmethod
    def append(self, items: Sequence[tuple[str, Any]]) -> list[StreamPosition]:
        """Store messages, and return their positions. Either all messages are stored, or none."""

    @abstractmethod
    async def aappend(self, items: Sequence[tuple[str, Any]]) -> list[StreamPosition]:
        """Async version of `append`."""

    def append_parts(self, items: Sequence[tuple[str, Any]]) -> list[StreamPosition]:
        """Store messages, and return their positions. In each part of the store, either all are stored, or none.

        The parts (see `shard`) are stored one after another. If there is only one part, either all are stored, or none.

        Args:
            items: pairs of a stream's name and a message.

        Raises:
            BroadcastError: nothing was stored.
            BroadcastUncertain: the messages in some parts were stored, or may have been.
        """
        positions: dict[int, StreamPosition] = {}
        for part in split_by_shard(self.shard, items):
            with _partly_stored(len(positions), len(items)):
                positions |= zip(part, self.append([items[at] for at in part]), strict=True)
        return [positions[at] for at in range(len(items))]

    async def aappend_parts(self, items: Sequence[tuple[str, Any]]) -> list[StreamPosition]:
        """Async version of `append_parts`."""
        positions: dict[int, StreamPosition] = {}
        for part in split_by_shard(self.shard, items):
            with _partly_stored(len(positions), len(items)):
                positions |= zip(part, await self.aappend([items[at] for at in part]), strict=True)
        return [positions[at] for at in range(len(items))]

    def shard(self, stream: str) -> str:
        """Return the part of the store that has a stream. One call of `append` can only use one part.

        By default, the store has one part, whose name is `""`.
        """
        return ""


@contextmanager
def _partly_stored(stored: int, count: int) -> Iterator[None]:
    """Convert an error of one part to `BroadcastUncertain` if the messages of earlier parts have been stored.

    Args:
        stored: how many messages have been stored.
        count: the number of all messages.
    """
    try:
        yield
    except BroadcastError as error:
        if stored == 0:
            raise
        raise BroadcastUncertain(
            f"{stored} of {count} messages were stored. The messages of the next slot were not, or may not have been: "
            f"{error} Those of later slots were not."
        ) from error
