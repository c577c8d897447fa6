"""Makes the faults of a storm. Its seed determines which ones."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from reliable_cable.stores.redis.scripts import script_text
from tests.support.redis import RedisServer
from tests.support.server import Server

from .broadcasters import Broadcaster
from .busy import Busy
from .plan import Fault, now
from .stage import Stage
from .store_faults import Kinds, StoreFaults

#: How long, in seconds, Redis is paused.
PAUSE = 2.0
#: The longest time, in seconds, during which no data passes to or from Redis. It exceeds the timeouts of connections.
STALL = 9.0

#: The exit codes of a server that was stopped by SIGTERM.
STOPPED = [0, -signal.SIGTERM]
if sys.version_info < (3, 11, 8):
    # Python may crash at its exit if a task is pending (python/cpython#113566). Under daphne, Django leaves a pending
    # task.
    STOPPED.append(-signal.SIGSEGV)


class Faults:
    """Makes faults, and counts them.

    Args:
        stage: the servers and stores that fail.
        rng: chooses the faults.
        broadcaster: makes the broadcasts that belong to a fault.
    """

    def __init__(self, stage: Stage, rng: random.Random, broadcaster: Broadcaster) -> None:
        self.history: list[Fault] = []
        #: Descriptions of faults that could not be made, and of servers that ended without a fault or with
        #: a wrong exit code.
        self.complaints: list[str] = []
        self._stage = stage
        self._rng = rng
        self._busy = Busy()
        self._tasks: set[asyncio.Task[None]] = set()
        self._snapshot: Path | None = None
        self._kinds = self._choose_kinds(StoreFaults(stage, rng, self._busy, broadcaster))

    @property
    def counts(self) -> Counter[str]:
        """The number of faults of each kind."""
        return Counter(fault.kind for fault in self.history)

    def _choose_kinds(self, stores: StoreFaults) -> Kinds:
        kinds = {
            **stores.kinds,
            "client reset": self._reset_clients,
            "server SIGKILL": self._kill_server,
            "server SIGTERM": self._terminate_server,
        }
        if self._stage.redis is not None:
            kinds |= {
                "pub/sub cut": self._cut_pubsub,
                "append reply lost": self._lose_reply,
                "Redis paused": self._pause,
                "Redis stalled": self._stall,
                "Redis restarted": self._restart_redis,
                "Redis older": self._restart_older,
                "Redis empty": self._restart_empty,
                "FLUSHALL": self._flush,
            }
        only = self._stage.plan.only
        unknown = set(only) - set(kinds)
        if unknown:
            raise ValueError(f"unknown kinds of faults: {sorted(unknown)}; known kinds: {sorted(kinds)}")
        return {name: make for name, make in kinds.items() if not only or name in only}

    async def run(self, seconds: float) -> None:
        """Begin faults at regular intervals for some time, and wait until all faults are over."""
        end = now() + seconds
        while (left := end - now()) > 0:
            self._make_one()
            await asyncio.sleep(min(self._stage.plan.every, left))
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._stage.redis is not None:
            self._stage.redis.address.lose_nothing()

    def _make_one(self) -> None:
        # A fault may be impossible now, for example if its server is being restarted. In that case, choose another
        # kind.
        kinds = list(self._kinds)
        self._rng.shuffle(kinds)
        task = asyncio.create_task(self._make(kinds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, kinds: list[str]) -> None:
        for kind in kinds:
            begun = now()
            try:
                happened = await self._kinds[kind]()
            except Exception as error:
                self.complaints.append(f"the fault {kind!r} failed: {type(error).__name__}: {error}")
                happened = True
            if happened:
                self.history.append(Fault(kind, begun, now()))
                return

    # -- connections --------------------------------------------------------------------------------------------------

    async def _reset_clients(self) -> bool:
        links = self._stage.web.links
        chosen = self._rng.sample(links, min(len(links), self._rng.randint(1, 4)))
        return self._stage.web.cut(chosen) > 0

    async def _cut_pubsub(self) -> bool:
        assert self._stage.redis is not None
        proxy = self._stage.redis.address
        links = [link for link in proxy.links if link.subscribed]
        return bool(links) and proxy.cut([self._rng.choice(links)]) > 0

    async def _lose_reply(self) -> bool:
        assert self._stage.redis is not None
        proxy = self._stage.redis.address
        lost = proxy.lose_reply(append_digest())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(lost.wait(), 5)
        return lost.is_set()

    # -- servers ------------------------------------------------------------------------------------------------------

    def _free_server(self) -> Server | None:
        free = [server for server in self._stage.servers if server not in self._busy]
        return self._rng.choice(free) if free else None

    async def _kill_server(self) -> bool:
        server = self._free_server()
        if server is None:
            return False
        with self._busy.using(server):
            await self._check_running(server)
            await server.restart()
        return True

    async def _terminate_server(self) -> bool:
        server = self._free_server()
        if server is None:
            return False
        with self._busy.using(server):
            if await self._check_running(server):
                code = await server.terminate()
                if code not in STOPPED:
                    self.complaints.append(f"{server.kind} ended with the exit code {code} after SIGTERM")
            await server.restart()
        return True

    async def _check_running(self, server: Server) -> bool:
        """Return whether a server is running. Record a complaint if it has ended by itself."""
        alive = server.alive
        if not alive:
            self.complaints.append(f"{server.kind} has ended by itself with the exit code {await server.stopped()}")
        return alive

    # -- Redis --------------------------------------------------------------------------------------------------------

    async def _pause(self) -> bool:
        return await self._with_redis(lambda redis: redis.pause(PAUSE), PAUSE)

    async def _stall(self) -> bool:
        assert self._stage.redis is not None
        proxy = self._stage.redis.address
        # Stalls are rare, because nothing can be read from Redis or written to it during a stall.
        if proxy in self._busy or (len(self._kinds) > 1 and self._rng.random() < 0.75):
            return False
        with self._busy.using(proxy):
            proxy.stall()
            await asyncio.sleep(self._rng.uniform(0, STALL))
            proxy.resume()
        return True

    async def _restart_redis(self) -> bool:
        kill = self._rng.random() < 0.5
        return await self._with_redis(lambda redis: redis.restart(kill=kill))

    async def _restart_older(self) -> bool:
        snapshot = self._snapshot
        if snapshot is None:
            await self._with_redis(self._take_snapshot)
            return False
        self._snapshot = None
        return await self._with_redis(lambda redis: redis.restart_from(snapshot))

    async def _restart_empty(self) -> bool:
        return await self._with_redis(lambda redis: redis.restart_empty())

    async def _flush(self) -> bool:
        return await self._with_redis(lambda redis: redis.flushall())

    async def _with_redis(self, do: Callable[[RedisServer], None], lasting: float = 0.0) -> bool:
        redis = self._stage.redis
        assert redis is not None
        if redis in self._busy:
            return False
        with self._busy.using(redis):
            await asyncio.to_thread(do, redis.primary)
            await asyncio.sleep(lasting)
        return True

    def _take_snapshot(self, redis: RedisServer) -> None:
        self._snapshot = redis.snapshot()


def append_digest() -> bytes:
    """Return the digest by which the EVALSHA of the append script differs from other requests."""
    return hashlib.sha1(script_text("append").encode(), usedforsecurity=False).hexdigest().encode()
