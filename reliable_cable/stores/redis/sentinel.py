"""Asks Redis Sentinels for the address of the primary, whenever a connection is opened.

After a failover, the Sentinels make the former primary a replica. The client notices this in the same way
as a new server behind an address (see lineage.py), and opens its connections again.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from reliable_cable.conf.redis_urls import SENTINEL_OPTIONS, Address, split_redis_url
from reliable_cable.exceptions import reason

#: The options that connections to Sentinels have in common with connections to Redis, besides those that begin with
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
        self._tls = parts.scheme.startswith("rediss")
        #: The URL of the Redis server. Its host is a placeholder. Its scheme is always `redis`, because redis-py would
        #: replace the class of the connections for `rediss`.
        self.server_url = parts.server("sentinel", 0).replace("rediss://", "redis://", 1)
        self._options: dict[str, Any] = {
            name: value for name, value in options.items() if name in SHARED_OPTIONS or name.startswith("ssl_")
        }
        self._options |= {
            name.removeprefix("sentinel_"): value for name, value in parts.query if name in SENTINEL_OPTIONS
        }
        self._options |= {"retry": Retry(NoBackoff(), 0)}
        if self._tls:
            self._options["ssl"] = True

    @property
    def place(self) -> str:
        """The addresses of the Sentinels, and the name of the service, as a string for error messages."""
        places = ", ".join(f"{host}:{port}" for host, port in self._addresses)
        return f"the Sentinels at {places}, service {self._service}"

    def sync_options(self) -> dict[str, Any]:
        """Return the options that make the connections of a pool for sync code ask the Sentinels."""
        cls = _SSLConnection if self._tls else _Connection
        return {"connection_class": cls, "sentinels": self}

    def async_options(self) -> dict[str, Any]:
        """Return the options that make the connections of a pool of `redis.asyncio` ask the Sentinels."""
        cls = _AsyncSSLConnection if self._tls else _AsyncConnection
        return {"connection_class": cls, "sentinels": self}

    def find(self) -> Address:
        """Return the host and the port of the primary.

        Raises:
            redis.ConnectionError: no Sentinel that can be reached knows a primary.
        """
        problems = []
        for address in tuple(self._addresses):
            client: Any = redis.Redis(*address, **self._options)
            try:
                return self._primary(address, client.sentinel_masters())
            except (RedisError, OSError) as error:
                problems.append(_problem(address, error))
            finally:
                client.close()
        raise self._not_found(problems)

    async def afind(self) -> Address:
        """Async version of `find`."""
        problems = []
        for address in tuple(self._addresses):
            client: Any = redis.asyncio.Redis(host=address[0], port=address[1], **self._options)
            try:
                return self._primary(address, await client.sentinel_masters())
            except (RedisError, OSError) as error:
                problems.append(_problem(address, error))
            finally:
                await client.aclose()
        raise self._not_found(problems)

    def _primary(self, address: Address, services: Mapping[str, Any]) -> Address:
        """Return the host and port of the primary, according to the reply of a Sentinel.

        Args:
            address: the address of the Sentinel, which is asked first the next time, because others may be down.
            services: the Sentinel's reply to SENTINEL MASTERS.
        """
        state = services.get(self._service)
        if state is None:
            raise redis.ConnectionError(f"knows the services {', '.join(services) or '(none)'}")
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            raise redis.ConnectionError("no primary is up")
        self._addresses = [address, *(each for each in self._addresses if each != address)]
        return state["ip"], int(state["port"])

    def _not_found(self, problems: Sequence[str]) -> redis.ConnectionError:
        return redis.ConnectionError(f"{self.place}, cannot be reached or know no primary ({'; '.join(problems)})")


def _problem(address: Address, error: Exception) -> str:
    return f"{address[0]}:{address[1]}: {reason(error)}"


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
    """A connection like `_Connection`, with TLS."""


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
    """A connection like `_AsyncConnection`, with TLS."""
