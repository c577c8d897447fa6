"""Finds the role of a Redis server and the lineage of its data, whenever a connection is opened.

After a failover, an address may belong to another server, and a server may have other data than before. So the epochs
of streams and the incarnations of presence data are bound to a *lineage*, which is a token in the data (see
lua/lineage.lua). A new lineage begins when a server is promoted or restarted, and when a server has older data again.

While a connection is open and idle, a server may be demoted, receive older data, and be promoted again. The older data
may have the same token. So scripts regularly compare the server's replication id with the one in the data (see
lua/prelude.lua).
"""

import random
import secrets
import threading
import time
from typing import Any, Final, NamedTuple

import redis
from redis.exceptions import RedisError

from .exchange import Command, Exchange, arun_exchange, cancellable, run_exchange
from .scripts import script_text

#: The maximum age, in seconds, of a connection. An older connection is reopened, to resolve the server's address again.
MAX_CONNECTION_AGE: Final = 60.0
#: The minimum time, in seconds, before a script checks again whether the server was demoted or promoted.
CHECK_INTERVAL: Final = 1.0
#: After a refused command, all connections are reopened, but at most once in this time, in seconds. If a command is
#: refused because of a new lineage, they are always reopened.
REOPEN_INTERVAL: Final = 0.5
#: How long, in seconds, Redis keeps the lineage record after its last use. This is longer than the TTL of all data that
#: are bound to a lineage.
RECORD_TTL: Final = 60 * 86400


class Identity(NamedTuple):
    """A Redis server, and the id of its data set (the lineage).

    The lineage changes when data may have been lost, for example by a failover.
    """

    run_id: str
    lineage: str


class LineageTracker:
    """Keeps track of the server that a Redis client is connected to, and of the lineage of the server's data.

    The lineage is a token that changes when data may have been lost, for example by a failover. All methods are
    thread-safe.

    Args:
        key: the key of the lineage record.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        #: The server of the newest connection, and the lineage of its data; None if no connection has been opened.
        self.identity: Identity | None = None
        #: The number of the current generation of connections. Connections of earlier generations are reopened before
        #: use.
        self._generation = 0
        self._reopened_at = -REOPEN_INTERVAL
        #: All lineages that this process has received from servers.
        self._seen_lineages: set[str] = set()
        self._lock = threading.Lock()

    def handshake(self, connection: Any) -> None:
        """Prepare a sync connection whose socket has just been opened.

        Raises:
            RedisError: the server is a replica, or the connection broke.
        """
        try:
            connection.on_connect()
            run_exchange(connection, self._handshake(connection))
        except BaseException:
            # The connection is closed, so that a late reply is not read as the reply to a later command.
            connection.disconnect()
            raise

    async def ahandshake(self, connection: Any) -> None:
        """Async version of `handshake`."""
        try:
            await cancellable(connection.on_connect())
            await arun_exchange(connection, self._handshake(connection))
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    def is_stale(self, connection: Any) -> bool:
        """Return whether a connection must be reopened before its next use."""
        return bool(connection.generation != self._generation or time.monotonic() > connection.expires)

    def argument(self, connection: Any) -> str:
        """Return the lineage of a connection's data, as an argument of a script.

        After each `CHECK_INTERVAL`, it once has the prefix `?`, which makes the script check the replication id, too.
        """
        lineage: str = connection.identity.lineage
        now = time.monotonic()
        if now < connection.check_at:
            return lineage
        connection.check_at = now + CHECK_INTERVAL
        return f"?{lineage}"

    def reopen_all(self, connection: Any, *, moved: bool = False) -> None:
        """Have all connections of the same generation as `connection` reopened before their next use.

        Call this if the server has refused a command.

        Args:
            connection: the connection whose command was refused.
            moved: whether the command was refused because the data have a new lineage.
        """
        with self._lock:
            now = time.monotonic()
            # The rate is limited, because a server may refuse all commands.
            if connection.generation == self._generation and (moved or now >= self._reopened_at + REOPEN_INTERVAL):
                self._generation += 1
                self._reopened_at = now

    def _handshake(self, connection: Any) -> Exchange[None]:
        generation = self._generation
        info = yield from read_info()
        if info.get("role") in ("slave", "replica"):
            raise redis.ConnectionError(
                "the server is a replica, which accepts no broadcasts: set REDIS_URL to the primary"
            )
        lineage = yield from self._find_lineage(info, generation)
        self._accept(connection, Identity(info["run_id"], lineage), generation)

    def _accept(self, connection: Any, identity: Identity, generation: int) -> None:
        """Record the server and the lineage of a new connection.

        Args:
            connection: the connection.
            identity: its server and lineage.
            generation: the generation of connections when the connection was opened.
        """
        connection.identity = identity
        connection.generation = self._record_identity(connection.identity, generation)
        connection.check_at = time.monotonic() + CHECK_INTERVAL
        connection.expires = time.monotonic() + MAX_CONNECTION_AGE * random.uniform(0.75, 1)  # noqa: S311 - not all at once

    def _find_lineage(self, info: dict[str, str], generation: int) -> Exchange[str]:
        """Return the lineage of the server's data."""
        (reply,) = yield [self._record_command(info, "")]
        lineage: str = _checked(reply).decode()
        if self._has_returned(lineage, generation):
            (reply,) = yield [self._record_command(info, lineage)]
            lineage = _checked(reply).decode()
        return lineage

    def _record_command(self, info: dict[str, str], replaced: str) -> Command:
        return ("EVAL", script_text("lineage"), 1, self.key, *record_arguments(info, replaced))

    def _has_returned(self, lineage: str, generation: int) -> bool:
        """Return whether the data have an old lineage again, after this process has seen a newer one.

        If so, the old lineage must be replaced by a new one. If it stayed, one offset could belong to different
        messages.
        """
        with self._lock:
            newest = self.identity.lineage if self.identity else ""
            return generation == self._generation and lineage != newest and lineage in self._seen_lineages

    def _record_identity(self, identity: Identity, generation: int) -> int:
        """Record the server and the lineage of a new connection, and return the connection's generation."""
        with self._lock:
            # If the generation ended during the handshake, it is unknown which lineage is newer.
            if generation == self._generation and identity != self.identity:
                self._generation += 1
                self.identity = identity
                self._seen_lineages.add(identity.lineage)
                return self._generation
            return generation


def record_arguments(info: dict[str, str], replaced: str) -> tuple[str | int, ...]:
    """Return the arguments of lineage.lua. In a cluster, the script gets one more argument.

    Args:
        info: the server's fields of INFO.
        replaced: a lineage that must be replaced by a new one; `""` if there is none.
    """
    fresh = f"{info['run_id']}-{secrets.token_hex(8)}"
    replication_ids = (info.get("master_replid", ""), info.get("master_replid2", ""))
    return (info["run_id"], *replication_ids, fresh, replaced, RECORD_TTL, int(info.get("uptime_in_seconds", 0)))


def read_info() -> Exchange[dict[str, str]]:
    """Read the fields of INFO that identify the server, its role and its replication.

    Raises:
        RedisError: the reply is an error, or lacks the field `run_id`.
    """
    info: dict[str, str] = {}
    for reply in (yield [("INFO", "server"), ("INFO", "replication")]):
        info |= parse_info(_checked(reply))
    if "run_id" not in info:
        raise redis.ConnectionError("the reply to INFO has no run_id")
    return info


def parse_info(reply: bytes) -> dict[str, str]:
    """Return the fields in a reply to INFO, by name."""
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in lines}


def _checked(reply: Any) -> Any:
    if isinstance(reply, RedisError):
        raise reply
    return reply
