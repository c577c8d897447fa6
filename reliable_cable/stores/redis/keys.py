"""The names of keys and pub/sub channels. The keys of one stream share a hash tag, so that a cluster could hold them.

The tag is a digest of the stream's name, since a name may hold braces.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache


@lru_cache(maxsize=4096)
def stream_tag(prefix: str, stream: str) -> str:
    """Return what the names of a stream's keys begin with."""
    digest = hashlib.blake2b(stream.encode(), digest_size=12).hexdigest()
    return f"{prefix}:{{{digest}}}"


def stream_channel(prefix: str, stream: str) -> str:
    """Return the pub/sub channel on which a stream's messages and presence events are announced."""
    return f"{prefix}:stream:{stream}"


def session_key(prefix: str, sid: str) -> str:
    """Return the key of a session's record."""
    return f"{prefix}:session:{sid}"


def revocation_key(prefix: str, condition: str) -> str:
    """Return the key of the time at which sessions were revoked that match a condition (`identity.condition_key`)."""
    return f"{prefix}:revoked:{condition}"


def lineage_key(prefix: str) -> str:
    """Return the key under which the lineage of the data is recorded (lineage.py)."""
    return f"{prefix}:lineage"
