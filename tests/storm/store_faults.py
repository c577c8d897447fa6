"""Faults of the stores in a storm: failovers, older copies of database files, a suspended Redis, bursts of messages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from tests.support.sqlite import copy_database

from .broadcasters import Broadcaster
from .busy import Busy
from .plan import BURST, BURST_STREAMS, DURABLE, VOLATILE
from .stage import Stage

#: The name that stands for the database in `Busy`.
DATABASE = "database"
#: The shortest and the longest time, in seconds, for which writes are lost before a failover that loses writes.
TAIL = (0.5, 2.0)
#: The shortest and the longest time, in seconds, for which Redis is suspended. The longest one exceeds the timeouts of
#: connections.
HANG = (0.5, 9.0)
#: The time, in seconds, between the broadcasts of a transaction and its commit.
HOLD = 0.4
#: The shortest and the longest time, in seconds, between the copy of an SQLite file and its restore.
AGE = (1.5, 4.0)
#: How long, in seconds, clients may take to reconnect to restarted servers, which learn the positions of streams then.
RECONNECT_TIME = 2.0

Kinds = Mapping[str, Callable[[], Awaitable[bool]]]


class StoreFaults:
    """Makes faults of the stores. Each method that makes a fault returns whether it was possible.

    Args:
        stage: the servers and stores that fail.
        rng: chooses the details.
        busy: the servers and stores that other faults are using.
        broadcaster: makes the broadcasts that belong to a fault.
    """

    def __init__(self, stage: Stage, rng: random.Random, busy: Busy, broadcaster: Broadcaster) -> None:
        self._stage = stage
        self._rng = rng
        self._busy = busy
        self._broadcaster = broadcaster

    @property
    def kinds(self) -> Kinds:
        """The faults that are possible with these stores, by name."""
        kinds: dict[str, Callable[[], Awaitable[bool]]] = {"burst": self._burst}
        if self._stage.redis is not None:
            kinds |= {
                "Redis hangs at commit": self._hang_at_commit,
                "Redis moved": self._move_redis,
                "Redis moved, connections cut": partial(self._move_redis, cut=True),
                "Redis moved, tail lost": partial(self._move_redis, lossy=True),
            }
        if self._stage.postgres is not None:
            kinds |= {
                "PostgreSQL moved": self._move_postgres,
                "PostgreSQL moved, tail lost": partial(self._move_postgres, lossy=True),
            }
        else:
            kinds["SQLite restored"] = self._restore_sqlite
        return kinds

    async def _burst(self) -> bool:
        if DATABASE in self._busy:
            return False
        with self._busy.using(DATABASE):
            stream = self._rng.choice(BURST_STREAMS)
            if self._rng.random() < 0.5:
                await self._broadcaster.broadcast_batch(stream, BURST)
            else:
                await self._broadcaster.broadcast_in_transaction(stream, BURST)
            # If the SQLite file were restored before a server has read the burst, no server could notice the loss of
            # the burst.
            await asyncio.sleep(1)
        return True

    async def _hang_at_commit(self) -> bool:
        redis = self._stage.redis
        assert redis is not None
        if redis in self._busy:
            return False
        with self._busy.using(redis):
            streams = [self._rng.choice(DURABLE), self._rng.choice(VOLATILE)]
            calls = [
                asyncio.create_task(self._broadcaster.broadcast_in_transaction(stream, hold=HOLD)) for stream in streams
            ]
            await asyncio.sleep(HOLD / 2)
            redis.primary.suspend()
            try:
                await asyncio.sleep(self._rng.uniform(*HANG))
            finally:
                redis.primary.resume()
            await asyncio.gather(*calls)
        return True

    async def _move_redis(self, *, cut: bool = False, lossy: bool = False) -> bool:
        redis = self._stage.redis
        assert redis is not None
        if redis in self._busy:
            return False
        with self._busy.using(redis):
            if not await redis.follows():
                return False
            losing = self._rng.uniform(*TAIL) if lossy else 0.0
            await redis.move(losing=losing, cut=cut or (lossy and self._rng.random() < 0.5))
        return True

    async def _move_postgres(self, *, lossy: bool = False) -> bool:
        postgres = self._stage.postgres
        assert postgres is not None
        if DATABASE in self._busy:
            return False
        with self._busy.using(DATABASE):
            if not await postgres.follows():
                return False
            await postgres.move(losing=self._rng.uniform(*TAIL) if lossy else 0.0)
        return True

    async def _restore_sqlite(self) -> bool:
        # Only running servers remember positions that reveal the restore, so no server may be killed during this fault.
        needed = {DATABASE, *self._stage.servers}
        if needed & self._busy.used:
            return False
        with self._busy.using(*needed):
            await asyncio.sleep(RECONNECT_TIME)
            copy = self._stage.folder / "older.sqlite3"
            copy.unlink(missing_ok=True)
            await asyncio.to_thread(copy_database, self._stage.database, copy)
            await asyncio.sleep(self._rng.uniform(*AGE))
            await asyncio.to_thread(copy_database, copy, self._stage.database)
            await asyncio.sleep(1)
        return True
