"""Calls from async code: async functions use no shared thread, and sync functions raise an error on an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction

from reliable_cable import (
    AsyncContextError,
    CableError,
    Channel,
    abroadcast,
    abroadcast_batch,
    adisconnect,
    aforget,
    ahistory,
    aposition,
    broadcast,
    broadcast_batch,
    disconnect,
    forget,
    history,
    position,
    presence_for,
    revoke,
)
from reliable_cable.concurrency.django_thread import has_own_thread
from reliable_cable.conf import CONTROL_STREAM, get_settings
from reliable_cable.models import OutboxEntry
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.engine import Engine, get_engine
from reliable_cable.stores.streams.base import Published, StreamEvent
from reliable_cable.stores.streams.durable import HOT_TAIL_TIMEOUT
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.conftest import EVERY_STORE, MODEL_STORES, finish_store_threads, until, with_own_connection
from tests.support.redis import RedisServer

every_store = pytest.mark.parametrize("alias", EVERY_STORE, indirect=True)
model_stores = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)


class Room(Channel):
    """A channel to broadcast on."""


CALLS: list[tuple[Callable[[], object], str]] = [
    (lambda: broadcast("a", 1), "abroadcast"),
    (lambda: broadcast_batch([("a", 1)]), "abroadcast_batch"),
    (lambda: forget("a"), "aforget"),
    (lambda: position("a"), "aposition"),
    (lambda: history("a"), "ahistory"),
    (lambda: disconnect(user="ann"), "adisconnect"),
    (lambda: revoke(stream="a"), "arevoke"),
    (lambda: presence_for("a").info(), "ainfo"),
    (lambda: presence_for("a").total(), "atotal"),
    (lambda: Room.broadcast_to(1, 1), "abroadcast_to"),
]


@every_store
@pytest.mark.usefixtures("engine")
class TestSyncCallsOnAnEventLoop:
    async def test_sync_functions_raise_an_error_that_names_the_async_twin(self) -> None:
        for call, twin in CALLS:
            with pytest.raises(AsyncContextError, match=rf"would block the event loop .* use `await {twin}\(\)`"):
                call()
        assert issubclass(AsyncContextError, CableError)
        assert issubclass(AsyncContextError, SynchronousOnlyOperation)
        assert await ahistory("a") == []

    async def test_sync_functions_work_in_a_thread(self) -> None:
        for call, _ in CALLS:
            await asyncio.to_thread(with_own_connection(call))
        assert [entry.data for entry in await ahistory("Room:1")] == [1]

    async def test_djangos_environment_variable_allows_sync_functions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        for call, _ in CALLS:
            with_own_connection(call)()


@asynccontextmanager
async def busy_thread() -> AsyncIterator[None]:
    """Keep the process's shared thread for thread-sensitive code busy."""
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        end.wait(60)

    working = asyncio.create_task(sync_to_async(work)())
    try:
        await until(begun.is_set)
        yield
        assert not working.done()
    finally:
        end.set()
        await working


@every_store
@pytest.mark.usefixtures("engine")
async def test_no_async_twin_waits_for_the_shared_thread() -> None:
    async with busy_thread():
        async with asyncio.timeout(30):
            assert await abroadcast("a", 1) == await aposition("a")
            assert [at and at.offset for at in await abroadcast_batch([("a", 2), ("b", 3)], atomic=False)] == [2, 1]
            await abroadcast("a", 4, transient=True)
            await Room.abroadcast_to(1, 1)
            await adisconnect(user="ann")
            await aforget("a")
    assert await ahistory("a") == []
    assert (await get_engine().streams.aposition(CONTROL_STREAM)).offset == 1


@every_store
@pytest.mark.usefixtures("engine")
async def test_a_loop_of_broadcasts_lets_other_tasks_run() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    for number in range(1, 21):
        await abroadcast("a", number)
    assert turns >= 20
    counting.cancel()


class TestWhoseThreadIsAsked:
    """The rules by which asgiref chooses the thread for thread-sensitive code. The module `threads` relies on them."""

    @staticmethod
    async def same_thread(other: int) -> tuple[bool, bool]:
        """Return `has_own_thread()`, and whether thread-sensitive code runs in a thread other than `other`."""
        return has_own_thread(), await sync_to_async(threading.get_ident)() != other

    async def shared(self) -> int:
        """Return the id of the process's shared thread for thread-sensitive code."""
        return await sync_to_async(threading.get_ident)()

    async def test_plain_async_code_uses_the_shared_thread(self) -> None:
        assert await self.same_thread(await self.shared()) == (False, False)
        assert await asyncio.create_task(self.same_thread(await self.shared())) == (False, False)

    def test_async_to_sync_uses_the_waiting_thread(self) -> None:
        async def tasks_too() -> list[tuple[bool, bool]]:
            return [await self.same_thread(0), await asyncio.create_task(self.same_thread(0))]

        assert async_to_sync(tasks_too)() == [(True, True), (True, True)]

    async def test_async_to_sync_in_a_thread_of_async_code_uses_the_waiting_thread(self) -> None:
        shared = await self.shared()
        asked = sync_to_async(async_to_sync(self.same_thread), thread_sensitive=False)
        assert await asked(shared) == (True, True)

    async def test_a_thread_sensitive_context_uses_its_own_thread(self) -> None:
        shared = await self.shared()
        async with ThreadSensitiveContext():
            assert await self.same_thread(shared) == (True, True)
        assert await self.same_thread(shared) == (False, False)


@every_store
class TestTransactionsAroundAsyncCode:
    pytestmark = pytest.mark.django_db(transaction=True, databases=["default"])

    @pytest.fixture
    def database(self, alias: str) -> str:
        return alias if alias == "postgres" else "default"

    def test_async_twins_wait_for_the_commit(self, engine: Engine, database: str) -> None:
        async def call() -> None:
            assert await abroadcast("a", 1) is None
            assert await abroadcast_batch([("a", 2)]) == [None]
            await abroadcast("a", 3, transient=True)
            await adisconnect(user="ann")

        with transaction.atomic(using=database):
            async_to_sync(call)()
            transaction.set_rollback(True, using=database)
        assert history("a") == []
        with transaction.atomic(using=database):
            async_to_sync(call)()
            assert engine.streams.position(CONTROL_STREAM).offset == 0
        assert [entry.data for entry in history("a")] == [1, 2]
        assert engine.streams.position(CONTROL_STREAM).offset == 1
        with transaction.atomic(using=database):
            async_to_sync(aforget)("a")
            assert position("a").offset == 2
        assert history("a") == []


@model_stores
@pytest.mark.usefixtures("engine")
def test_a_manual_transaction_around_async_code_stays_open(alias: str) -> None:
    transaction.set_autocommit(False, using=alias)
    try:
        assert async_to_sync(abroadcast)("a", 1) is None
        assert OutboxEntry.objects.using(alias).count() == 1
        transaction.commit(using=alias)
    finally:
        transaction.set_autocommit(True, using=alias)
    broadcast("a", 2)
    assert [entry.data for entry in history("a")] == [1, 2]


@pytest.mark.redis
@pytest.mark.django_db(transaction=True)
class TestARedisThatHangs:
    @pytest.fixture
    def redis(self, tmp_path: Path) -> Iterator[RedisServer]:
        """A Redis server that the test may suspend."""
        with RedisServer(tmp_path) as server:
            yield server

    async def test_a_hanging_redis_delays_no_async_orm_call(self, redis: RedisServer, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"REDIS_URL": redis.url, "REDIS_OPTIONS": {"socket_timeout": 60}}
        await abroadcast("a", 9)
        await adisconnect(user="bob")
        os.kill(redis.pid, signal.SIGSTOP)
        calls: list[Coroutine[Any, Any, object]] = [
            abroadcast("a", 1),
            abroadcast_batch([("a", 2)]),
            abroadcast("a", 3, transient=True),
            aforget("b"),
            adisconnect(user="ann"),
        ]
        waiting = [asyncio.ensure_future(call) for call in calls]
        try:
            async with asyncio.timeout(20):
                for _ in range(3):
                    assert await OutboxEntry.objects.acount() == 0
            assert not any(call.done() for call in waiting)
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        await asyncio.gather(*waiting)
        assert sorted(entry.data for entry in await ahistory("a")) == [1, 2, 9]
        await get_engine().aclose()

    async def test_a_hanging_redis_delays_no_durable_stream(self, redis: RedisServer, settings: Any) -> None:
        settings.RELIABLE_CABLE = {
            "REDIS_URL": redis.url,
            "REDIS_OPTIONS": {"socket_timeout": 60},
            "STREAMS": {"a": {"durable": True, "history_size": 1000}},
        }
        engine = get_engine()
        heard: list[StreamEvent] = []
        listener = engine.streams.listen(heard.append)
        await listener.subscribe("a")
        await abroadcast("a", -1)
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            slowest, at = 0.0, None
            for number in range(600):
                began = time.monotonic()
                at = await abroadcast("a", [number])
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < 20, "a broadcast that waits for Redis takes 60 s"
            assert at is not None
            known = StreamPosition(at.epoch, 601)
            async with asyncio.timeout(4 * HOT_TAIL_TIMEOUT):
                page = await engine.streams.aread("a", after=0, limit=1000, known=known)
            assert len(page.entries) == 601
            await until(lambda: offsets_of(heard) == list(range(1, 602)), timeout=30)
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        assert await asyncio.to_thread(with_own_connection(lambda: position("a").offset)) == 601
        await listener.close()
        await asyncio.to_thread(engine.streams.close)
        await engine.aclose()
        await asyncio.to_thread(finish_store_threads)

    async def test_pending_messages_reach_other_processes_when_redis_responds_again(
        self, redis: RedisServer, settings: Any
    ) -> None:
        settings.RELIABLE_CABLE = {"REDIS_URL": redis.url, "STREAMS": {"a": {"durable": True}}}
        engine = get_engine()
        await abroadcast("a", [0])
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            for number in range(1, 50):
                await abroadcast("a", [number])
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        await asyncio.to_thread(engine.streams.close)
        page = await RedisStreamStore(get_settings()).aread("a", after=0, limit=100)
        assert [(entry.offset, entry.data) for entry in page.entries] == [(n + 1, f"[{n}]") for n in range(50)]
        await engine.aclose()
        await asyncio.to_thread(finish_store_threads)


def offsets_of(heard: list[StreamEvent]) -> list[int]:
    return sorted({event.entry.offset for event in heard if isinstance(event, Published)})
