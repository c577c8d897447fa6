"""Servers delete expired sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import transaction

from reliable_cable.concurrency.threads import run_store
from reliable_cable.exceptions import StoreError
from reliable_cable.hub.session_records import SessionRecords
from reliable_cable.models import Session
from reliable_cable.stores.sessions.base import SessionStore
from reliable_cable.stores.sessions.memory import MemorySessionStore
from tests.unit.sessions import Session as LiveSession

from .conftest import Clock, finish_store_threads, until, with_own_connection
from .sessions import ALIASES, ANN, TTL, clock, model_store, store

__all__ = ["clock", "store"]

every_store = pytest.mark.parametrize("kind", ["memory", *ALIASES], indirect=True)
pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SWEEP_INTERVAL": 0.02, "SWEEP_PAUSE": 0.001, "SWEEP_SIZE": 10}.items():
        monkeypatch.setattr(f"reliable_cable.hub.session_sweep.{name}", value)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
async def records(store: SessionStore) -> AsyncIterator[SessionRecords]:
    """The session records of a server whose only client has disconnected."""
    records = SessionRecords(store)
    client = LiveSession("client")
    records.add(client)
    records.discard(client)
    yield records
    await records.stop()
    finish_store_threads()


def stored(store: SessionStore, kind: str) -> set[str]:
    """Return the ids of the stored sessions, expired ones included."""
    if isinstance(store, MemorySessionStore):
        return set(store._records)
    return set(Session.objects.using(kind).values_list("sid", flat=True))


async def until_stored(store: SessionStore, kind: str, sids: set[str]) -> None:
    async with asyncio.timeout(30):
        while await run_store(stored, store, kind) != sids:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@every_store
class TestSweep:
    async def test_expired_sessions_are_deleted_in_several_steps(
        self, records: SessionRecords, store: SessionStore, kind: str, clock: Clock
    ) -> None:
        await store.asave({f"old{number}": ANN for number in range(25)})
        clock.advance(TTL)
        await store.asave({"young": ANN})
        await until_stored(store, kind, {"young"})

    async def test_a_failing_store_is_swept_when_it_works_again(
        self,
        records: SessionRecords,
        store: SessionStore,
        kind: str,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async def fail(*, limit: int) -> int:
            raise StoreError("the store is down")

        await store.asave({"old": ANN})
        clock.advance(TTL)
        with monkeypatch.context() as patch:
            patch.setattr(store, "aprune", fail)
            await until(lambda: "Expired sessions could not be deleted" in caplog.text)
        await until_stored(store, kind, set())


def in_another_thread(call: Callable[[], int]) -> int:
    """Return the result of a call in a thread with a database connection of its own."""
    with ThreadPoolExecutor(1) as pool:
        return int(pool.submit(with_own_connection(call)).result(10))


@pytest.mark.postgres
def test_two_processes_do_not_wait_for_each_other(clock: Clock) -> None:
    here, there = model_store("postgres", clock), model_store("postgres", clock)
    here.save({f"old{number}": ANN for number in range(5)})
    clock.advance(TTL)
    with transaction.atomic(using="postgres"):
        assert here.prune(limit=3) == 3
        assert in_another_thread(lambda: there.prune(limit=3)) == 2, (
            "the records that the other process is deleting are not skipped"
        )
    assert not stored(here, "postgres")
