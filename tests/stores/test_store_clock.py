"""The clock that decides about expiry: the server's clock on PostgreSQL, and this host's clock on SQLite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.utils import CursorWrapper

from reliable_cable import models
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError
from reliable_cable.stores.streams.base import YOUNG_TIME, Message
from reliable_cable.stores.streams.model import ModelStreamStore
from tests.stores.conftest import (
    EVERY_STORE,
    POSTGRES,
    SQLITE,
    Clock,
    MakeStore,
    finish_store_threads,
    wait_until,
    with_own_connection,
)
from tests.stores.test_stream_concurrency import database_of
from tests.support.clock import find_faketime, wrong_clock

ROOT = Path(__file__).resolve().parents[2]
TEN_MINUTES = 600.0

needs_faketime = pytest.mark.skipif(find_faketime() is None, reason="no libfaketime on this machine")


@pytest.fixture
def store(alias: str) -> Iterator[ModelStreamStore]:
    """A store that uses its default clock."""
    store = ModelStreamStore(CableSettings(database=alias))
    yield store
    store.close()
    finish_store_threads()


def elsewhere(alias: str, ahead: float) -> dict[str, Any]:
    """Run `clock_worker` as if on a host with a wrong clock; return its results."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.stores.clock_worker", json.dumps(database_of(alias))],
        cwd=ROOT,
        env={**os.environ, **wrong_clock(ahead)},
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["host time"] == pytest.approx(time.time() + ahead, abs=60), "the clock is wrong"
    return found


@needs_faketime
@pytest.mark.parametrize("alias", [POSTGRES], indirect=True)
@pytest.mark.parametrize("ahead", [TEN_MINUTES, -TEN_MINUTES])
class TestWrongClocks:
    """A process whose clock is wrong by more than the history TTL uses the same data as other processes."""

    def test_it_reads_and_keeps_fresh_entries(self, store: ModelStreamStore, alias: str, ahead: float) -> None:
        store.append([("a", Message(data)) for data in "123"])
        store.publish_transient("a", Message("transient"))
        found = elsewhere(alias, ahead)
        assert found["offsets"] == [1, 2, 3]
        assert found["since an hour ago"] == 0
        assert found["pruned"] == 0
        assert models.TransientEntry.objects.using(alias).count() == 1

    def test_its_messages_have_the_right_time(self, store: ModelStreamStore, alias: str, ahead: float) -> None:
        before = store.time()
        elsewhere(alias, ahead)
        assert before <= models.StreamEntry.objects.using(alias).get().created <= store.time()
        assert store.offset_since("a", before) == 0
        assert store.offset_since("a", store.time()) == 1

    def test_it_knows_the_time_of_the_server(self, store: ModelStreamStore, alias: str, ahead: float) -> None:
        before = store.time()
        assert before <= elsewhere(alias, ahead)["store time"] <= store.time()

    def test_it_does_not_read_expired_entries(self, store: ModelStreamStore, alias: str, ahead: float) -> None:
        store.append([("a", Message("1"))])
        past = store.time() - store.settings.history_ttl
        models.StreamEntry.objects.using(alias).update(created=past)
        found = elsewhere(alias, ahead)
        assert found["offsets"] == []
        assert found["since an hour ago"] is None
        assert found["pruned"] == 1


def _waits_for_a_lock(cursor: Any) -> bool:
    cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return bool(cursor.fetchone()[0])


@pytest.mark.parametrize("alias", [POSTGRES], indirect=True)
class TestServerTime:
    def test_an_append_that_waited_for_another_one_has_the_time_after_the_wait(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        store.append([("a", Message("1"))])
        waiter = threading.Thread(target=with_own_connection(lambda: store.append([("a", Message("2"))])))
        with transaction.atomic(using=alias):
            models.Stream.objects.using(alias).update(tail_at=store.time())
            waiter.start()
            with connections[alias].cursor() as cursor:
                wait_until(lambda: _waits_for_a_lock(cursor))
            before = store.time()
        waiter.join()
        assert models.StreamEntry.objects.using(alias).get(offset=2).created >= before

    def test_an_unreachable_server_is_a_store_error(self, store: ModelStreamStore, alias: str) -> None:
        outage = mock.Mock(side_effect=OperationalError("down"))
        with (
            mock.patch.object(CursorWrapper, "execute", outage),
            pytest.raises(StoreError, match="time cannot be read"),
        ):
            store.time()

    def test_a_broken_connection_is_reopened(self, store: ModelStreamStore, alias: str) -> None:
        before = store.time()
        connections[alias].connection.close()
        assert store.time() >= before

    def test_trims_use_the_servers_clock(self, alias: str, store: ModelStreamStore) -> None:
        store = ModelStreamStore(CableSettings(database=alias, history_size=2))
        store.append([("a", Message(data)) for data in "1234"])
        assert store.prune() == 0
        models.StreamEntry.objects.using(alias).update(created=store.time() - YOUNG_TIME)
        assert store.prune() == 2
        store.close()


@pytest.mark.parametrize("alias", [SQLITE], indirect=True)
def test_sqlite_uses_the_clock_of_the_host(store: ModelStreamStore) -> None:
    assert store.time() == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("alias", EVERY_STORE, indirect=True)
async def test_a_given_clock_is_used(make_store: MakeStore, clock: Clock) -> None:
    store = make_store()
    assert store.time() == await store.atime() == clock.now
