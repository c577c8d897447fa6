"""The names of the keys and the pub/sub channels in Redis.

All keys of a stream have the same hash tag, so that a cluster stores them on the same node. On a single server, the tag
is a digest of the stream's name, because the name may contain braces.

In a cluster, the tag is that of the stream's *partition*. There are `PARTITIONS` partitions. All keys of a partition
are in one slot, with the keys that its streams share: the lineage record and the index of presence. The slots of the
partitions are spread evenly over the range of slots, so a node's share of the partitions is like its share of slots.
"""

import hashlib
import re
from binascii import crc_hqx
from functools import cache, lru_cache
from typing import Final

from .calls import LINEAGE, Call

#: The number of partitions in a cluster. It is a part of the format of the data, and must not be changed. A cluster
#: cannot use more primaries than this. Each search for expired members asks for those of all partitions.
PARTITIONS: Final = 256
#: The number of slots in a Redis Cluster.
SLOTS: Final = 16384
#: The first character of a channel in the arguments of a script, if the script publishes with SPUBLISH (see
#: lua/prelude.lua).
SHARDED: Final = "\x01"

_DATABASE: Final = re.compile(r":stream@\d+:")


def key_slot(key: str) -> int:
    """Return the slot of a key in a Redis Cluster."""
    start = key.find("{")
    if start >= 0:
        end = key.find("}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key.encode(), 0) % SLOTS


@cache
def _partition_tags() -> tuple[str, ...]:
    """Return the hash tags of the partitions. Their slots are in different parts of the range of slots."""
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < PARTITIONS:
        tags.setdefault(key_slot(str(number)) * PARTITIONS // SLOTS, str(number))
        number += 1
    return tuple(tags[part] for part in range(PARTITIONS))


@lru_cache(maxsize=4096)
def _digest(stream: str) -> str:
    return hashlib.blake2b(stream.encode(), digest_size=12).hexdigest()


class KeyNames:
    """The names of the keys that belong to streams, and of their channels.

    Args:
        prefix: the prefix of all keys.
        cluster: whether Redis is a cluster.
        database: the number of the Redis database.
    """

    def __init__(self, prefix: str, *, cluster: bool, database: int = 0) -> None:
        self.prefix = prefix
        self.cluster = cluster
        self.database = database
        self._lineage = lineage_key(prefix)

    def partition(self, stream: str) -> str:
        """Return the prefix of the keys that all streams of a partition share. A single server is one partition."""
        return self.partitions()[int(_digest(stream)[:4], 16) % PARTITIONS] if self.cluster else self.prefix

    def partitions(self) -> tuple[str, ...]:
        """Return the prefixes of all partitions."""
        return _partition_prefixes(self.prefix) if self.cluster else (self.prefix,)

    def stream(self, stream: str) -> str:
        """Return the prefix of all keys of a stream. It contains the hash tag."""
        return f"{self.partition(stream)}:{_digest(stream)}" if self.cluster else stream_tag(self.prefix, stream)

    def channel(self, stream: str) -> str:
        """Return the name of the pub/sub channel on which a stream's messages and presence events are announced.

        In a cluster, the name has the hash tag of the stream's partition, as sharded pub/sub requires.
        """
        if self.cluster:
            return f"{self.partition(stream)}:stream:{stream}"
        return stream_channel(self.prefix, self.database, stream)

    def lineage(self, partition: str) -> str:
        """Return the key of the lineage record of a partition."""
        return lineage_key(partition)

    def lineage_of(self, call: Call) -> str:
        """Return the key of the lineage record in the partition of a call; `""` if the call checks no lineage."""
        if not call.args or call.args[0] is not LINEAGE:
            return ""
        if not self.cluster:
            return self._lineage
        key = call.keys[0] if call.keys else call.beside
        return lineage_key(key[: key.index("}") + 1])


@lru_cache(maxsize=16)
def _partition_prefixes(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}:{{{tag}}}" for tag in _partition_tags())


def stream_tag(prefix: str, stream: str) -> str:
    """Return the prefix of all keys of a stream on a single server. It contains the hash tag."""
    return f"{prefix}:{{{_digest(stream)}}}"


def stream_channel(prefix: str, database: int, stream: str) -> str:
    """Return the name of the pub/sub channel of a stream on a single server.

    The name contains the number of the database, because all databases of a server share the pub/sub channels.
    """
    return f"{prefix}:stream@{database}:{stream}"


def former_channel(channel: str) -> str:
    """Return the name of a channel in the previous release. That name lacks the number of the database."""
    return _DATABASE.sub(":stream:", channel, count=1)


def session_key(prefix: str, sid: str) -> str:
    """Return the key of a session's record. Its value is the record as JSON text."""
    return f"{prefix}:session:{sid}"


def revocation_key(prefix: str, condition: str) -> str:
    """Return the key under which the time of a revocation is stored.

    Args:
        prefix: the prefix of all keys.
        condition: the result of `identity.condition_key`.
    """
    return f"{prefix}:revoked:{condition}"


def bucket_key(prefix: str, name: str) -> str:
    """Return the key of a token bucket. Its value is the time at which the bucket will be full."""
    return f"{prefix}:bucket:{name}"


def lineage_key(prefix: str) -> str:
    """Return the key of the lineage record, a hash that identifies the server and its data set (see lineage.py)."""
    return f"{prefix}:lineage"
