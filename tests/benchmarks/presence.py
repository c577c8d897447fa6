"""Measures what presence costs a server process, in Redis, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.db.backends.utils import CursorWrapper

from reliable_cable.concurrency.threads import end_threads
from reliable_cable.conf import CableSettings
from reliable_cable.hub.presence import ROUNDS_PER_TTL
from reliable_cable.stores.presence.base import Member, PresenceStore
from reliable_cable.stores.presence.model import ModelPresenceStore
from reliable_cable.stores.presence.redis import RedisPresenceStore
from tests.support.postgres import find_postgres, running_postgres
from tests.support.redis import RedisServer

STREAMS = 50
MEMBERS_PER_STREAM = 20
MEMBERS = STREAMS * MEMBERS_PER_STREAM
ROUNDS = 20
#: How long, in seconds, a listener of all streams polls without events.
IDLE_TIME = 5.0
#: How long, in seconds, to wait until notifications arrive at a new listener.
SETTLE_TIME = 1.0

#: The statements of the current measurement. Calls of Redis are not included.
_statements: list[str] = []


def run(folder: Path) -> int:
    """Print a table, and return the exit code."""
    execute = CursorWrapper.execute

    def counted(cursor: Any, sql: str, params: Any = None) -> Any:
        _statements.append(sql)
        return execute(cursor, sql, params)

    databases: Any = settings.DATABASES
    databases["default"]["NAME"] = str(folder / "db.sqlite3")
    databases["default"]["OPTIONS"] = {}
    call_command("migrate", verbosity=0)
    CursorWrapper.execute = counted  # type: ignore[method-assign,assignment]
    sys.stdout.write(f"{MEMBERS} members in {STREAMS} streams\n")
    with RedisServer(folder / "redis") as redis:
        _report("Redis", lambda: RedisPresenceStore(CableSettings(redis_url=redis.url)))
    _report("SQLite, default options", lambda: ModelPresenceStore(CableSettings()))
    binaries = find_postgres()
    if binaries is not None:
        with running_postgres(binaries) as host:
            connections["postgres"].settings_dict["HOST"] = host
            call_command("migrate", database="postgres", verbosity=0)
            _report("PostgreSQL", lambda: ModelPresenceStore(CableSettings(database="postgres")))
            connections["postgres"].close()
    return 0


def _report(name: str, make: Callable[[], PresenceStore]) -> None:
    sys.stdout.write(f"{name}\n")
    asyncio.run(_measure(make(), make()))
    end_threads(10)


async def _measure(store: PresenceStore, other: PresenceStore) -> None:
    """Measure a store. The other store acts like that of another process."""
    members = [
        Member(f"stream {stream}", f"session {stream} {number}", str(number), {"name": "Ann"})
        for number in range(MEMBERS_PER_STREAM)
        for stream in range(STREAMS)
    ]
    held: dict[str, list[str]] = {}
    for member in members:
        held.setdefault(member.stream, []).append(member.session)

    async def join() -> None:
        await asyncio.gather(*(store.ajoin_all([member]) for member in members))

    async def renew() -> None:
        for _ in range(ROUNDS):
            await store.arefresh(held)
            await store.aexpire()

    async def read() -> None:
        for stream in held:
            await store.ainfo(stream)

    arrived = asyncio.Event()

    async def reach() -> None:
        for number in range(ROUNDS):
            arrived.clear()
            await store.ajoin_all([Member("stream 0", f"late {number}", f"late {number}")])
            await arrived.wait()

    async def leave() -> None:
        await asyncio.gather(*(store.aleave(member.stream, member.session) for member in members))

    await _time("all members join at once", join)
    listener = store.listen(lambda event: None)
    await listener.subscribe_many(list(held))
    await _time(f"a second without events, {STREAMS} streams", lambda: asyncio.sleep(IDLE_TIME), IDLE_TIME)
    await listener.close()
    interval = store.settings.presence_ttl / ROUNDS_PER_TTL
    await _time(f"a round, every {interval:g} s", renew, ROUNDS)
    await _time("the members of a stream are read", read, STREAMS)
    await _time("all members leave at once", leave)
    listener = other.listen(lambda event: arrived.set())
    await listener.subscribe("stream 0")
    await asyncio.sleep(SETTLE_TIME)
    await _time("a join reaches another process", reach, ROUNDS)
    await listener.close()
    await store.aclose()
    await other.aclose()


async def _time(name: str, call: Any, count: float = 1) -> None:
    _statements.clear()
    began, used = time.perf_counter(), process_time()
    await call()
    cpu, wall = process_time() - used, time.perf_counter() - began
    statements = f"{len(_statements) / count:7.1f} statements" if _statements else ""
    sys.stdout.write(f"  {name:42} {cpu / count * 1000:8.2f} ms CPU {wall / count * 1000:9.2f} ms {statements}\n")
