"""Parses `REDIS_URL`, which names one Redis server, the nodes of a Redis Cluster, or the Sentinels of a service."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
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
    """The parts of a `REDIS_URL` that does not begin with `unix://`.

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


class ContradictingURLs(ValueError):
    """Raised if a REDIS_URL consists of several URLs that contradict each other. The message contains no password."""


def split_redis_url(url: str) -> RedisURL:
    """Return the parts of a `REDIS_URL` that does not begin with `unix://`.

    The addresses are separated by commas. Instead of an address, there may be a whole URL, as in
    `redis://a:7000,redis://b:7000`. If several of these URLs have a password, a path or options, these must be equal.

    Raises:
        ContradictingURLs: whole URLs have different schemes, passwords, paths or options.
        ValueError: an address has no valid port, or the characters of a password are not encoded.
    """
    scheme = url.partition("://")[0]
    pieces = [_split_piece(each) for each in re.split(r",(?=[a-z+]+://)", url)]
    if any(piece.scheme != scheme for piece in pieces):
        raise ContradictingURLs("URLs with different schemes; either all nodes use TLS (rediss), or none")
    userinfo = _same("users or passwords", [piece.userinfo for piece in pieces])
    path = _same("paths", [piece.path.removeprefix("/") for piece in pieces])
    query = tuple(parse_qsl(_same("options", [piece.query for piece in pieces]), keep_blank_values=True))
    places = [place for piece in pieces for place in piece.places]
    sentinels = scheme.endswith("+sentinel")
    port = SENTINEL_PORT if sentinels else REDIS_PORT
    addresses = tuple(_address(place, port) for place in places)
    service, _, database = path.partition("/") if sentinels else ("", "", path)
    return RedisURL(scheme, userinfo, addresses, unquote(service), database, query)


class _Piece(NamedTuple):
    """One of the URLs in a `REDIS_URL`. `places` contains its addresses as strings."""

    scheme: str
    userinfo: str
    places: list[str]
    path: str
    query: str


def _split_piece(url: str) -> _Piece:
    scheme, _, rest = url.partition("://")
    # `urlsplit` gets the addresses one by one: it refuses several of them if one is an IPv6 address in brackets.
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    parts = urlsplit(f"//{rest.removeprefix(authority)}")
    userinfo, at, hosts_and_ports = authority.rpartition("@")
    places = hosts_and_ports.split(",")
    hosts = [urlsplit(f"//{place}").hostname for place in places]
    unencoded = not set("@[]").isdisjoint(userinfo) or "@" in parts.path + parts.fragment
    if unencoded or ("@" in parts.query and not all(hosts)):
        raise ValueError("a character of the password is not encoded")
    return _Piece(scheme, userinfo + at, places, parts.path, parts.query)


def _same(name: str, values: Sequence[str]) -> str:
    """Return the value that all non-empty values have in common; `""` if all values are empty."""
    given = dict.fromkeys(filter(None, values))
    if len(given) > 1:
        raise ContradictingURLs(f"URLs with different {name}; all nodes have the same, so give them once")
    return next(iter(given), "")


def _address(place: str, default_port: int) -> Address:
    parts = urlsplit(f"//{place}")
    port = parts.port
    return parts.hostname or "localhost", default_port if port is None else port
