"""Reads REDIS_URL: one Redis server, the nodes of a Redis Cluster, or the Sentinels of a service."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

#: The schemes of a single server or of a cluster.
SERVER_SCHEMES: Final = ("redis://", "rediss://", "unix://")
#: The schemes of Sentinels. `rediss+sentinel` uses TLS for the Sentinels and for the Redis servers.
SENTINEL_SCHEMES: Final = ("redis+sentinel://", "rediss+sentinel://")
#: Options of the query that are for the Sentinels, and not for the Redis servers.
SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisURL:
    """The parts of a REDIS_URL, except for `unix://`.

    Args:
        scheme: the scheme without `://`, for example `"redis"`.
        userinfo: the user and the password as in the URL, with `@` at the end; `""` if there are none.
        addresses: the hosts and ports.
        service: the name of the Sentinels' service; `""` without Sentinels.
        database: the number of the database as a string; `""` if the URL has none.
        query: the options after `?`, as pairs.
    """

    scheme: str
    userinfo: str
    addresses: tuple[Address, ...]
    service: str
    database: str
    query: tuple[tuple[str, str], ...]

    @property
    def has_sentinels(self) -> bool:
        """Whether the addresses are those of Sentinels."""
        return self.scheme.endswith("+sentinel")

    def server(self, host: str, port: int) -> str:
        """Return the URL of one Redis server, with the user, the database and the options of this URL."""
        scheme = self.scheme.removesuffix("+sentinel")
        query = urlencode([(name, value) for name, value in self.query if name not in SENTINEL_OPTIONS])
        path = f"/{self.database}" if self.database else ""
        address = f"[{host}]:{port}" if ":" in host else f"{quote(host)}:{port}"
        return f"{scheme}://{self.userinfo}{address}{path}{'?' if query else ''}{query}"


def split_redis_url(url: str) -> RedisURL:
    """Return the parts of a REDIS_URL, except for `unix://`.

    The addresses are separated by commas. Instead of an address, there may be a whole URL, whose other parts are
    ignored: `redis://a:7000,redis://b:7000` are two addresses.

    Raises:
        ValueError: an address has no valid port, or the characters of a password are not encoded.
    """
    scheme, _, rest = url.partition("://")
    parts = urlsplit(f"redis://{rest.replace(f'{scheme}://', '')}")
    userinfo, at, places = parts.netloc.rpartition("@")
    hosts = [urlsplit(f"//{place}").hostname for place in places.split(",")]
    if "@" in userinfo or "@" in parts.path + parts.fragment or ("@" in parts.query and not all(hosts)):
        raise ValueError("a character of the password is not encoded")
    sentinels = scheme.endswith("+sentinel")
    port = SENTINEL_PORT if sentinels else REDIS_PORT
    addresses = tuple(_address(place, port) for place in places.split(","))
    service, _, database = parts.path.removeprefix("/").partition("/") if sentinels else ("", "", parts.path[1:])
    query = tuple(parse_qsl(parts.query, keep_blank_values=True))
    return RedisURL(scheme, userinfo + at, addresses, unquote(service), database, query)


def _address(place: str, default_port: int) -> Address:
    parts = urlsplit(f"//{place}")
    port = parts.port
    return parts.hostname or "localhost", default_port if port is None else port
