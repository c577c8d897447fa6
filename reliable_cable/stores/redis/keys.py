"""The names of the keys and the pub/sub channels in Redis.

All keys of a stream have the same hash tag, so that a cluster would store them on the same node. The tag is a digest of
the stream's name, because the name may contain braces.
"""

import hashlib
import re
from functools import lru_cache
from typing import Final

_DATABASE: Final = re.compile(r":stream@\d+:")


@lru_cache(maxsize=4096)
def stream_tag(prefix: str, stream: str) -> str:
    """Return the prefix of all keys of a stream. It contains the hash tag."""
    digest = hashlib.blake2b(stream.encode(), digest_size=12).hexdigest()
    return f"{prefix}:{{{digest}}}"


def stream_channel(prefix: str, database: int, stream: str) -> str:
    """Return the name of the pub/sub channel on which a stream's messages and presence events are announced.

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
