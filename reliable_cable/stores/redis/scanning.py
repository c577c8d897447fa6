"""Finds keys by a pattern on all servers."""

from collections.abc import Iterator

from .calls import Call
from .client import BaseClient


def scan_keys(client: BaseClient, pattern: str, count: int) -> Iterator[list[str]]:
    """Yield the keys that match a pattern, in several lists. A key may occur twice.

    In a cluster, a key may be missing if its slot is moved during the scan.

    Args:
        client: the client.
        pattern: the pattern of SCAN.
        count: the number of keys that each SCAN examines.

    Raises:
        StoreError: a server could not be reached.
    """
    for server in client.servers():
        cursor = None
        while cursor != 0:
            scan = Call("SCAN", [], [cursor or 0, "MATCH", pattern, "COUNT", count])
            ((cursor, keys),) = server.run(scan, idempotent=True)
            cursor = int(cursor)
            yield [key.decode() for key in keys]
