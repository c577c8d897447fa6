"""Batches of messages whose streams are in several parts of a store, such as the slots of a Redis Cluster."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, InvalidOption

#: A function that returns the part of the store that has a stream, see `StreamStore.shard`.
Shard = Callable[[str], str]


def split_by_shard(shard: Shard, items: Sequence[tuple[str, Any]]) -> list[list[int]]:
    """Return the numbers of the messages in each part of a store, in the order of the parts' first messages.

    Args:
        shard: returns the part that has a stream.
        items: the names of the streams, and the messages.
    """
    parts: dict[str, list[int]] = {}
    for number, (stream, _) in enumerate(items):
        parts.setdefault(shard(stream), []).append(number)
    return list(parts.values())


def require_one_shard(shard: Shard, streams: Collection[str]) -> None:
    """Check that messages to these streams can be stored together, either all or none.

    Raises:
        InvalidOption: the streams are in different parts of the store.
    """
    if len(streams) > 1 and len({shard(stream) for stream in streams}) > 1:
        raise InvalidOption(
            f"Nothing was broadcast: the batch has {len(streams)} streams, which are in different slots of the Redis "
            "Cluster, so its messages cannot be stored all or none. Pass atomic=False, so that the messages of each "
            "slot are stored, one slot after another, or call broadcast for each of them."
        )


@contextmanager
def partly_stored(number: int, count: int) -> Iterator[None]:
    """Convert an error of one part if the messages of earlier parts have been stored.

    Args:
        number: how many parts have been stored.
        count: the number of all parts.
    """
    try:
        yield
    except BroadcastError as error:
        if number == 0:
            raise
        raise BroadcastUncertain(
            f"The messages of {number} of {count} slots were stored, and those of the others were not: {error}"
        ) from error
