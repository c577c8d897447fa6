"""Limits how often clients connect from one address (`RATE_LIMITS["connect"]`).

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

#: How long, in seconds, a handshake waits for the shared buckets.
PATIENCE: Final = 0.5
#: How long, in seconds, to use only the buckets of this process after the shared ones could not be reached.
PAUSE: Final = 2.0
#: The prefix length of the network that an IPv6 client usually has. The client can choose any address in it.
IPV6_PREFIX: Final = 64
#: An address with a port, which some proxies write into their header. The port differs for each connection.
_WITH_PORT: Final = re.compile(r"\[(?P<v6>[^\]]*)\](?::[0-9]+)?|(?P<v4>[0-9.]+):[0-9]+")
#: The number of characters to which an address that is not an IP address is cut.
MAX_LENGTH: Final = 64


class ConnectLimit:
    """Counts the connects from each address, in the shared buckets or, while they cannot be reached, in this process.

    Args:
        limit: the limit. None allows everything.
        shared: the buckets that all processes share; None if there are none.
        tasks: the background tasks of the event loop.
        clock: returns the time in seconds, by any monotonic clock.
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
        #: When the shared buckets may be used again.
        self._resumes_at = 0.0

    async def allows(self, scope: Mapping[str, Any], namespace: str) -> bool:
        """Count a connect. Return whether the limit allows it.

        Clients whose address is unknown are allowed, because servers that listen on a Unix socket know no addresses.

        Args:
            scope: the ASGI scope.
            namespace: the namespace of the connection, or `""`.
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
                "If that is a proxy, the server has to be told to trust its header X-Forwarded-For.",
                address,
                self._limit.count,
                self._limit.period,
            )
        return taken

    async def _take_shared(self, name: str, limit: RateLimit) -> bool | None:
        """Take a token from a shared bucket. Return whether it had one, or None if it did not answer in time."""
        if self._shared is None or self._clock() < self._resumes_at:
            return None
        task: asyncio.Task[bool] = self._tasks.spawn(self._shared.atake(name, limit))
        task.add_done_callback(mark_retrieved)
        # The task is not cancelled after the timeout, because that would close its connection to Redis.
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
    """Return the address (for IPv6, the network) by which a client's connects are counted, or None if it is unknown.

    This is the address that the server has put into the scope. A server that trusts a proxy takes it from a header.
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
