"""Broadcasts inside a caller's transactions are sent after the commit. If the store fails then, no error is raised."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError, connections, transaction

from reliable_cable import (
    BroadcastError,
    InvalidOption,
    StoreError,
    broadcast,
    broadcast_batch,
    disconnect,
    forget,
    history,
    position,
)
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.signals import broadcast_failed
from reliable_cable.stores.engine import Engine, get_engine
from reliable_cable.stores.streams.durable import DurableStreamStore
from reliable_cable.stores.streams.memory import MemoryStreamStore
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_numbering import Numbering
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.conftest import finish_store_threads, wait_until
from tests.support.redis import RedisServer, find_binaries

REDIS = find_binaries()[0].name if find_binaries() else "no redis"
redis_param = pytest.param(REDIS, id="redis", marks=pytest.mark.redis)
durable_param = pytest.param("durable", id="durable", marks=pytest.mark.redis)
every_engine = pytest.mark.parametrize(
    "alias",
    ["memory", pytest.param("default", id="sqlite"), "postgres", redis_param, durable_param],
    indirect=True,
)

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, databases=["default", "postgres"])]


@pytest.fixture
def own(alias: str) -> str:
    """The alias of the store's database, or `postgres` for a store without a database."""
    return "default" if alias in ("default", "durable") else "postgres"


@pytest.fixture
def other(own: str) -> str:
    """The alias of the database that is not `own`."""
    return "postgres" if own == "default" else "default"


def data(stream: str = "a") -> list[Any]:
    return [entry.data for entry in history(stream)]


@every_engine
@pytest.mark.usefixtures("engine")
class TestSeveralTransactions:
    def test_a_broadcast_is_sent_after_the_last_commit(self, own: str, other: str) -> None:
        with transaction.atomic(using=own):
            with transaction.atomic(using=other):
                assert broadcast("a", 1) is None
                assert broadcast_batch([("a", 2), ("b", 3)]) == [None, None]
            assert data() == []
        assert data() == [1, 2]
        assert data("b") == [3]

    @pytest.mark.parametrize("inner", ["own", "other"])
    @pytest.mark.parametrize("rolled_back", ["own", "other"])
    def test_a_broadcast_is_not_sent_if_a_transaction_is_rolled_back(
        self, own: str, other: str, inner: str, rolled_back: str
    ) -> None:
        names = {"own": own, "other": other}
        outer_name, inner_name = (other, own) if inner == "own" else (own, other)
        with transaction.atomic(using=outer_name):
            with transaction.atomic(using=inner_name):
                broadcast("a", 1)
                broadcast("a", 1, transient=True)
                disconnect(user="ann")
                if names[rolled_back] == inner_name:
                    transaction.set_rollback(True, using=inner_name)
            if names[rolled_back] == outer_name:
                transaction.set_rollback(True, using=outer_name)
        assert broadcast("a", 2) == position("a")
        assert data() == [2]
        assert get_engine().streams.position(CONTROL_STREAM).offset == 0

    def test_an_unsent_broadcast_leaves_no_references(self, own: str, other: str) -> None:
        class Payload(dict[str, Any]):
            """A dict to which weak references are possible."""

        payload = Payload(text="hi")
        gone = weakref.ref(payload)
        with transaction.atomic(using=own):
            with transaction.atomic(using=other):
                broadcast("a", payload)
                transaction.set_rollback(True, using=other)
        del payload
        gc.collect()
        assert gone() is None
        assert connections[own].run_on_commit == connections[other].run_on_commit == []

    def test_forget_and_disconnect_wait_for_all_transactions_too(self, own: str, other: str) -> None:
        broadcast("a", 1)
        with transaction.atomic(using=other):
            with transaction.atomic(using=own):
                forget("a")
                disconnect(user="ann")
            assert data() == [1]
            assert get_engine().streams.position(CONTROL_STREAM).offset == 0
        assert data() == []
        assert get_engine().streams.position(CONTROL_STREAM).offset == 1

    def test_using_names_the_only_transaction_to_wait_for(self, own: str, other: str) -> None:
        with transaction.atomic(using=other):
            with transaction.atomic(using=own):
                broadcast("a", 1, using=own)
                broadcast_batch([("a", 2)], using=own)
                disconnect(user="ann", using=own)
                assert data() == []
            assert data() == [1, 2]
            assert get_engine().streams.position(CONTROL_STREAM).offset == 1
            with transaction.atomic(using=own):
                forget("a", using=own)
            assert data() == []
            assert broadcast("a", 3, using=own) is not None, "no transaction is open there"
            transaction.set_rollback(True, using=other)
        assert data() == [3]

    def test_using_must_name_a_database(self) -> None:
        calls: list[Callable[[], object]] = [
            lambda: broadcast("a", 1, using="nowhere"),
            lambda: broadcast_batch([("a", 1)], using="nowhere"),
            lambda: forget("a", using="nowhere"),
            lambda: disconnect(user="ann", using="nowhere"),
        ]
        for call in calls:
            with pytest.raises(InvalidOption, match=r"using is 'nowhere'; it must be a key of DATABASES: 'default'"):
                call()
        with pytest.raises(InvalidOption, match="using or immediate"):
            broadcast("a", 1, using="default", immediate=True)


@pytest.mark.parametrize("alias", ["postgres"], indirect=True)
def test_a_disconnect_does_not_join_a_transaction_that_it_does_not_wait_for(
    engine: Engine, own: str, other: str
) -> None:
    with transaction.atomic(using=own):
        disconnect(user="ann", using=other)
        transaction.set_rollback(True, using=own)
    assert engine.streams.position(CONTROL_STREAM).offset == 1
    assert engine.sessions.revoked([{"user": "str:ann"}]) != [0.0]


@pytest.fixture
def failures() -> Iterator[list[tuple[type, str, Exception]]]:
    """The arguments of each `broadcast_failed` signal. Its receiver raises an error, which the caller must not get."""
    heard: list[tuple[type, str, Exception]] = []

    def receive(sender: type, stream: str, error: Exception, **kwargs: Any) -> None:
        heard.append((sender, stream, error))
        raise RuntimeError("a receiver's own error")

    broadcast_failed.connect(receive)
    yield heard
    broadcast_failed.disconnect(receive)


Failures = list[tuple[type, str, Exception]]


class TestAStoreThatFailsAfterTheCommit:
    """In these tests, a method of the memory or model store raises an error, or Redis cannot be reached."""

    @pytest.fixture
    def own_redis(self, tmp_path: Path) -> Iterator[RedisServer]:
        """A Redis server that the test may stop."""
        with RedisServer(tmp_path) as server:
            yield server

    @contextmanager
    def failing(self, method: str, store: type, error: Exception) -> Iterator[None]:
        with mock.patch.object(store, method, side_effect=error):
            yield

    @pytest.mark.parametrize(
        ("alias", "method"),
        [("memory", "append"), pytest.param("default", "write", id="sqlite"), ("postgres", "write")],
        indirect=["alias"],
    )
    def test_a_failure_after_the_commit_raises_no_error_in_the_caller(
        self, engine: Engine, other: str, method: str, failures: Failures, caplog: pytest.LogCaptureFixture
    ) -> None:
        later = mock.Mock()
        store = type(engine.streams)
        error = OperationalError("gone away") if store is ModelStreamStore else BroadcastError("gone away")
        target = Numbering if store is ModelStreamStore else store
        with self.failing(method, target, error), transaction.atomic(using=other):
            broadcast("a", 1)
            broadcast_batch([("a", 2), ("b", 3)])
            transaction.on_commit(later, using=other)
        later.assert_called_once_with()
        assert [(sender, stream) for sender, stream, _ in failures] == [(store, "a"), (store, "a"), (store, "b")]
        assert all("gone away" in str(error) for _, _, error in failures)
        lines = [record for record in caplog.records if "after the commit" in record.message]
        assert [record.message.split(" failed")[0] for record in lines] == [
            "A broadcast to 'a'",
            "A broadcast to 'a', 'b'",
        ]
        assert all("gone away" in record.message and record.exc_info is None for record in lines)

    @pytest.mark.redis
    @pytest.mark.parametrize("streams", [{}, {"durable": {"durable": True}}])
    def test_a_lost_redis_raises_no_error_in_the_caller(
        self,
        own_redis: RedisServer,
        streams: dict[str, Any],
        settings: Any,
        failures: Failures,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        settings.RELIABLE_CABLE = {"REDIS_URL": own_redis.url, "STREAMS": streams}
        store = DurableStreamStore if streams else RedisStreamStore
        later = mock.Mock()
        with transaction.atomic():
            broadcast("a", 1)
            broadcast("b", 2, transient=True)
            forget("c")
            if streams:
                broadcast("durable", 3)
            transaction.on_commit(later)
            own_redis.kill()
        later.assert_called_once_with()
        assert [(sender, stream) for sender, stream, _ in failures] == [(store, "a"), (store, "b"), (store, "c")]
        assert all(isinstance(error, BroadcastError | StoreError) for _, _, error in failures)
        if streams:
            assert data("durable") == [3]
        get_engine().streams.close()
        finish_store_threads()

    def test_a_failed_transient_message_or_forget_raises_no_error_in_the_caller(
        self, settings: Any, failures: Failures
    ) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory"}
        with self.failing("publish_transient", MemoryStreamStore, BroadcastError("gone away")), transaction.atomic():
            broadcast("a", 1, transient=True)
        with self.failing("forget", MemoryStreamStore, StoreError("gone away")), transaction.atomic():
            forget("a")
        assert [(sender, stream, str(error)) for sender, stream, error in failures] == [
            (MemoryStreamStore, "a", "gone away"),
            (MemoryStreamStore, "a", "gone away"),
        ]

    @pytest.mark.redis
    def test_a_disconnect_is_retried_until_it_is_stored(self, own_redis: RedisServer, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"REDIS_URL": own_redis.url}
        later = mock.Mock()
        with transaction.atomic():
            disconnect(user="ann", reconnect=True)
            transaction.on_commit(later)
            own_redis.kill()
        later.assert_called_once_with()
        own_redis.start()
        streams, sessions = get_engine().streams, get_engine().sessions
        wait_until(lambda: streams.position(CONTROL_STREAM).offset == 1, timeout=30)
        (at,) = sessions.revoked([{"user": "str:ann"}])
        assert at > 0
        (entry,) = streams.read(CONTROL_STREAM, after=0, limit=10).entries
        assert '"reconnect": true' in entry.data
        streams.close()
