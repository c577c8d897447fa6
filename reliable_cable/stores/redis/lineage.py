"""Finds out, when a connection opens, the role of its server and the lineage of the server's data.

An address may lead to another server after a failover, and a server may have other data than it had before. So epochs
of streams and incarnations of presence are bound to a *lineage*: a token that is recorded in the data themselves
(lua/lineage.lua). A new lineage begins with a promotion, with a restart, and when earlier data come back.
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
#: The shortest time, in seconds, between two occasions on which a refused command makes all connections reopen.
LEAVE_INTERVAL: Final = 0.5
#: How long, in seconds, the record is kept after its last use: longer than everything that is bound to it.
RECORD_TTL: Final = 60 * 86400
#: What `master_replid2` is on a server that was never promoted.
NO_REPLID: Final = "0" * 40


class Identity(NamedTuple):
    """A server, and the lineage of the data that it had when it was asked."""

    run_id: str
    lineage: str


class LineageTracker:
    """Tracks the server and the lineage that the connections of one client lead to. It is thread-safe.

    Args:
        key: the key of the lineage record.
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
        """Prepare a sync connection whose socket has just been opened.

        Raises:
            RedisError: the connection leads to a replica, or broke.
        """
        try:
            connection.on_connect()
            run_exchange(connection, self._greeting(connection))
        except BaseException:
            # The answer may still arrive, and must not be taken for the answer to a later command.
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
        """Reopen all connections of this one's generation before their next use: its server refused a command.

        Args:
            connection: the connection whose command was refused.
            moved: whether it was refused because the data have another lineage now. New connections find that out.
        """
        with self._lock:
            now = time.monotonic()
            # Limited in rate, so that a server that refuses everything is not flooded with connections.
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
        """Return whether this process has seen this lineage before, and another one since.

        Other messages may have been given the same offsets meanwhile.
        """
        with self._lock:
            newest = self.identity.lineage if self.identity else ""
            return generation == self._generation and lineage != newest and lineage in self._seen

    def _learn(self, identity: Identity, generation: int) -> int:
        """Record what a new connection leads to, and return the connection's generation."""
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
