"""Limits the rate of connection attempts from an address (`RATE_LIMITS["connect"]`).

See Deployment: Limits for each client.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

from reliable_cable.client_log import handshake_log
from reliable_cable.concurrency.tasks import BackgroundTasks, mark_retrieved
from reliable_cable.conf import RateLimit
from reliable_cable.exceptions import StoreError
from reliable_cable.namespaces import qualify
from reliable_cable.stores.buckets.base import Buckets
from reliable_cable.stores.buckets.memory import MemoryBuckets

#: How long, in seconds, a handshake waits for a response from the shared token buckets.
PATIENCE: Final = 0.5
#: How long, in seconds, a process uses only its own buckets after the shared buckets could not be reached.
PAUSE: Final = 2.0
#: The usual prefix length of the network of an IPv6 client. The client can choose any address in its network.
IPV6_PREFIX: Final = 64
#: Matches an address with a port, which some proxies write into their header. The port must be ignored, because it
#: differs for each connection.
_WITH_PORT: Final = re.compile(r"\[(?P<v6>[^\]]*)\](?::[0-9]+)?|(?P<v4>[0-9.]+):[0-9]+")
#: The maximum length, in characters, of an address that is not an IP address. A longer address is truncated.
MAX_LENGTH: Final = 64


class ConnectLimit:
    """Counts the connection attempts from each address, in token buckets that all processes share.

    While the shared buckets cannot be reached, each process counts the attempts in buckets of its own.

    Args:
        limit: the limit; None if connection attempts are not limited.
        shared: the shared buckets; None if there are none.
        tasks: the background tasks of the event loop.
        clock: a function that returns the time of a monotonic clock, in seconds.
    """

    def __init__(
        self,
        limit: RateLimit | None,
        shared: Buckets | None,
        tasks: BackgroundTasks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._shared = shared
        self._tasks = tasks
        self._clock = clock
        self._own = MemoryBuckets(clock)
        #: The time from which the shared buckets may be used again.
        self._resumes_at = 0.0

    async def allows(self, scope: Mapping[str, Any], namespace: str) -> bool:
        """Count a connection attempt, and return whether the limit allows it.

        Clients with an unknown address are allowed. A server that listens on a Unix socket knows no addresses.

        Args:
            scope: the ASGI scope of the connection.
            namespace: the namespace of the connection; `""` if it has none.
        """
        address = None if self._limit is None else client_address(scope)
        if self._limit is None or address is None:
            return True
        name = qualify(namespace, address)
        taken = await self._take_shared(name, self._limit)
        if taken is None:
            taken = await self._own.atake(name, self._limit)
        if not taken:
            handshake_log.warning(
                "A client was refused, because %r has connected more than %d times in %d s (RATE_LIMITS['connect']). "
                "If this is a proxy, configure the server to trust its header X-Forwarded-For.",
                address,
                self._limit.count,
                self._limit.period,
            )
        return taken

    async def _take_shared(self, name: str, limit: RateLimit) -> bool | None:
        """Take a token from a shared bucket. Return whether the bucket had one; None if it cannot be used now."""
        if self._shared is None or self._clock() < self._resumes_at:
            return None
        task: asyncio.Task[bool] = self._tasks.spawn(self._shared.atake(name, limit))
        task.add_done_callback(mark_retrieved)
        # The task is not cancelled after the timeout, because cancelling it would close its connection to Redis.
        await asyncio.wait([task], timeout=PATIENCE)
        error: object = "no answer in time"
        if task.done():
            try:
                return task.result()
            except StoreError as refusal:
                error = refusal
        self._resumes_at = self._clock() + PAUSE
        handshake_log.warning("Connects are limited in each process, because Redis cannot be used: %s", error)
        return None


def client_address(scope: Mapping[str, Any]) -> str | None:
    """Return the address for which a client's connection attempts are counted; None if the address is unknown.

    For IPv6, this is the client's network. The server puts the address into the scope. If the server trusts a proxy, it
    takes the address from a header of the proxy.
    """
    client = scope.get("client")
    host = client[0] if client else None
    if not host:
        return None
    with_port = _WITH_PORT.fullmatch(str(host))
    try:
        address = ip_address(str(host) if with_port is None else with_port["v6"] or with_port["v4"])
    except ValueError:
        return str(host)[:MAX_LENGTH]
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    network = IPv6Address(int(address) >> (128 - IPV6_PREFIX) << (128 - IPV6_PREFIX))
    return f"{network}/{IPV6_PREFIX}"
