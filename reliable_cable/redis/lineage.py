"""Which data a connection leads to, asked when the connection opens: the server's role, and the lineage of its data.

An address may lead to another server after a failover, and a server may have other data than it had before. So epochs
of streams and incarnations of presence are bound to a *lineage*: a token that is recorded in the data themselves
(lua/lineage.lua). A promotion, a restart, or data that come back begin a new lineage.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from typing import Any, Final, NamedTuple

import redis
from redis.exceptions import RedisError

from .exchange import Command, Exchange, arun_exchange, cancellable, run_exchange
from .scripts import script_text

#: Seconds after which a connection is opened again, so that its address is resolved again.
GREATEST_AGE: Final = 60.0
#: Seconds between two times at which all connections are given up because one of them was refused.
LEAVE_INTERVAL: Final = 0.5
#: Seconds for which the record outlives its last use: longer than anything that is bound to it.
RECORD_TTL: Final = 60 * 86400
#: What `master_replid2` is on a server that was never promoted.
NO_REPLID: Final = "0" * 40


class Identity(NamedTuple):
    """A server, and the lineage of the data that it had when it was asked."""

    run_id: str
    lineage: str


class LineageTracker:
    """What one client has learnt about its Redis, over all its connections; thread-safe.

    Args:
        key: of the record of the lineage.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        #: What the newest connection leads to; None: no connection was opened yet.
        self.identity: Identity | None = None
        #: Connections of an earlier generation are opened again before their next use.
        self._generation = 0
        self._left_at = -LEAVE_INTERVAL
        #: The lineages that were seen so far.
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def greet(self, connection: Any) -> None:
        """Make a sync connection ready whose socket is open.

        Raises:
            RedisError: it leads to a replica, or broke.
        """
        try:
            connection.on_connect()
            run_exchange(connection, self._greeting(connection))
        except BaseException:
            # The answer is perhaps still to come, and must not be taken for another one's.
            connection.disconnect()
            raise

    async def agreet(self, connection: Any) -> None:
        """Async twin of `greet`."""
        try:
            await cancellable(connection.on_connect())
            await arun_exchange(connection, self._greeting(connection))
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    def is_stale(self, connection: Any) -> bool:
        """Whether a connection is to be opened again before its next use."""
        return bool(connection.generation != self._generation or time.monotonic() > connection.expires)

    def leave(self, connection: Any, *, moved: bool = False) -> None:
        """Have all connections opened again that are as old as this one, since its server took no command.

        Args:
            connection: was refused something.
            moved: because the data have another lineage by now, which new connections find out.
        """
        with self._lock:
            now = time.monotonic()
            # Seldom enough that a server that refuses everything for long is not flooded with connections.
            if connection.generation == self._generation and (moved or now >= self._left_at + LEAVE_INTERVAL):
                self._generation += 1
                self._left_at = now

    def _greeting(self, connection: Any) -> Exchange[None]:
        generation = self._generation
        info: dict[str, str] = {}
        for answer in (yield [("INFO", "server"), ("INFO", "replication")]):
            info |= parse_info(_raised(answer))
        if info.get("role") in ("slave", "replica"):
            raise redis.ConnectionError(
                "the server is a replica, which takes no broadcasts: let REDIS_URL lead to the primary"
            )
        try:
            run_id = info["run_id"]
        except KeyError:
            raise redis.ConnectionError("the answer to INFO has no run_id") from None
        (answer,) = yield [self._record(info, "")]
        lineage = _raised(answer).decode()
        if self._came_back(lineage, generation):
            (answer,) = yield [self._record(info, lineage)]
            lineage = _raised(answer).decode()
        connection.identity = Identity(run_id, lineage)
        connection.generation = self._learn(connection.identity, generation)
        connection.expires = time.monotonic() + GREATEST_AGE * random.uniform(0.75, 1)  # noqa: S311 - not all at once

    def _record(self, info: dict[str, str], replaced: str) -> Command:
        promoted = info.get("master_replid2", NO_REPLID) != NO_REPLID
        fresh = f"{info['run_id']}-{secrets.token_hex(8)}"
        args = (info["run_id"], info.get("master_replid", ""), int(promoted), fresh, replaced, RECORD_TTL)
        return ("EVAL", script_text("lineage"), 1, self.key, *args)

    def _came_back(self, lineage: str, generation: int) -> bool:
        """Whether data are back that this process saw before others: their offsets may have been used otherwise."""
        with self._lock:
            newest = self.identity.lineage if self.identity else ""
            return generation == self._generation and lineage != newest and lineage in self._seen

    def _learn(self, identity: Identity, generation: int) -> int:
        """Take note of what a new connection leads to; return the connection's generation."""
        with self._lock:
            self._seen.add(identity.lineage)
            if generation == self._generation and identity != self.identity:
                if self.identity is not None:
                    self._generation += 1
                self.identity = identity
                return self._generation
            return generation


def parse_info(answer: bytes) -> dict[str, str]:
    """Return the fields of an answer to INFO."""
    lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in lines}


def _raised(answer: Any) -> Any:
    if isinstance(answer, RedisError):
        raise answer
    return answer
