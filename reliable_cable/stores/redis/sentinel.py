"""Asks Redis Sentinels for the address of the primary, whenever a connection is opened.

After a failover, the Sentinels make the former primary a replica. Its connections notice this as behind any other
address that moves (see lineage.py), and are opened again.
"""

from typing import Any, Final

import redis
import redis.asyncio
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from reliable_cable.conf.redis_urls import SENTINEL_OPTIONS, split_redis_url

#: The options of connections to Redis that connections to Sentinels have, too, in addition to those that begin with
#: `ssl_`.
SHARED_OPTIONS: Final = ("socket_timeout", "socket_connect_timeout", "socket_keepalive", "protocol")


class Sentinels:
    """The Sentinels of a service.

    Args:
        url: the URL of the Sentinels, which `check_redis_url` has checked.
        options: the options of connections.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        parts = split_redis_url(url)
        self._service = parts.service
        self._addresses = list(parts.addresses)
        #: The URL of the Redis server. Its host is a placeholder.
        self.server_url = parts.server("sentinel", 0)
        self._options: dict[str, Any] = {
            name: value for name, value in options.items() if name in SHARED_OPTIONS or name.startswith("ssl_")
        }
        self._options |= {
            name.removeprefix("sentinel_"): value for name, value in parts.query if name in SENTINEL_OPTIONS
        }
        self._options |= {"retry": Retry(NoBackoff(), 0)}
        if parts.scheme.startswith("rediss"):
            self._options["ssl"] = True

    @property
    def place(self) -> str:
        """The addresses of the Sentinels, and the name of the service, for messages."""
        places = ", ".join(f"{host}:{port}" for host, port in self._addresses)
        return f"the Sentinels at {places}, service {self._service}"

    def sync_options(self, url: str) -> dict[str, Any]:
        """Return the options that make the connections of a pool for sync code ask the Sentinels."""
        cls = _SSLConnection if url.startswith("rediss://") else _Connection
        return {"connection_class": cls, "sentinels": self}

    def async_options(self, url: str) -> dict[str, Any]:
        """Return the options that make the connections of a pool of `redis.asyncio` ask the Sentinels."""
        cls = _AsyncSSLConnection if url.startswith("rediss://") else _AsyncConnection
        return {"connection_class": cls, "sentinels": self}

    def find(self) -> tuple[str, int]:
        """Return the host and the port of the primary.

        Raises:
            redis.ConnectionError: no Sentinel that can be reached knows a primary.
        """
        sentinel: Any = Sentinel(self._addresses, sentinel_kwargs=self._options)  # type: ignore[no-untyped-call]
        try:
            host, port = sentinel.discover_master(self._service)
        except MasterNotFoundError:
            raise self._not_found() from None
        finally:
            for each in sentinel.sentinels:
                each.close()
        self._put_first(sentinel.sentinels[0])
        return host, port

    async def afind(self) -> tuple[str, int]:
        """Async twin of `find`."""
        sentinel: Any = AsyncSentinel(self._addresses, sentinel_kwargs=self._options)  # type: ignore[no-untyped-call]
        try:
            host, port = await sentinel.discover_master(self._service)
        except AsyncMasterNotFoundError:
            raise self._not_found() from None
        finally:
            for each in sentinel.sentinels:
                await each.aclose()
        self._put_first(sentinel.sentinels[0])
        return host, port

    def _put_first(self, sentinel: Any) -> None:
        """Ask this Sentinel first the next time, because others may be down."""
        options = sentinel.connection_pool.connection_kwargs
        first = (options["host"], options["port"])
        self._addresses = [first, *(address for address in self._addresses if address != first)]

    def _not_found(self) -> redis.ConnectionError:
        return redis.ConnectionError(f"{self.place}, cannot be reached or know no primary")


class _FindsPrimary:
    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        self._sentinels = sentinels
        super().__init__(**options)

    def _connect(self: Any) -> Any:
        self.host, self.port = self._sentinels.find()
        return super()._connect()  # type: ignore[misc]


class _Connection(_FindsPrimary, redis.Connection):
    """A connection for sync code to the primary that the Sentinels name."""


class _SSLConnection(_FindsPrimary, redis.SSLConnection):
    """The same with TLS."""


class _AsyncFindsPrimary:
    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        self._sentinels = sentinels
        super().__init__(**options)

    async def _connect(self: Any) -> None:
        self.host, self.port = await self._sentinels.afind()
        await super()._connect()  # type: ignore[misc]


class _AsyncConnection(_AsyncFindsPrimary, redis.asyncio.Connection):
    """A connection of asyncio to the primary that the Sentinels name."""


class _AsyncSSLConnection(_AsyncFindsPrimary, redis.asyncio.SSLConnection):
    """The same with TLS."""
