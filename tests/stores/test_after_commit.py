"""Broadcasts that wait for the caller's transactions, and failures of a store after the commit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connections, transaction

from reliable_cable import (
    BroadcastError,
    InvalidOption,
    StoreError,
    broadcast,
    broadcast_batch,
    broadcast_template,
    disconnect,
    forget,
    history,
    position,
    revoke,
)
from reliable_cable.conf import CONTROL_STREAM, get_settings
from reliable_cable.signals import broadcast_failed
from reliable_cable.stores.engine import Engine, get_engine
from reliable_cable.stores.streams.durable import DurableStreamStore
from reliable_cable.stores.streams.memory import MemoryStreamStore
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_numbering import Numbering
from reliable_cable.stores.streams.redis import RedisStreamStore
from reliable_cable.testing import isolated_cable
from reliable_cable.turbo import broadcast_append_to, broadcast_remove_to
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
in_tables = pytest.mark.parametrize(
    "alias", [pytest.param("default", id="sqlite"), "postgres", durable_param], indirect=True
)
elsewhere = pytest.mark.parametrize("alias", ["memory", redis_param], indirect=True)

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, databases=["default", "postgres"])]


@pytest.fixture
def own(alias: str) -> str:
    """The alias of the store's database, if it has one."""
    return "default" if alias in ("default", "durable") else "postgres"


@pytest.fixture
def other(own: str) -> str:
    """The other database."""
    return "postgres" if own == "default" else "default"


def data(stream: str = "a") -> list[Any]:
    return [entry.data for entry in history(stream)]


@contextmanager
def manual(database: str) -> Iterator[None]:
    """Turn autocommit off."""
    transaction.set_autocommit(False, using=database)
    try:
        yield
    finally:
        transaction.rollback(using=database)
        transaction.set_autocommit(True, using=database)


#: Everything that waits for transactions, with what each call can do if Django runs no hooks.
CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "transient": (lambda: broadcast("a", 2, transient=True), "immediate=True"),
    "batch": (lambda: broadcast_batch([("a", 2), ("a", 3, {"transient": True})]), "immediate=True"),
    "template": (lambda: broadcast_template("a", "admin/500.html"), "immediate=True"),
    "turbo template": (lambda: broadcast_append_to("a", target="x", template="admin/500.html"), "immediate=True"),
    "turbo": (lambda: broadcast_remove_to("a", target="x"), "immediate=True"),
    "forget": (lambda: forget("a"), "call it after the commit"),
    "disconnect": (lambda: disconnect(user="ann"), "call it after the commit"),
    "revoke": (lambda: revoke(stream="a"), "call it after the commit"),
}
every_call = pytest.mark.parametrize(("call", "remedy"), CALLS.values(), ids=CALLS)


def everything() -> Any:
    """Return the positions and messages of all streams that `CALLS` change."""
    return position("a"), data(), get_engine().streams.position(CONTROL_STREAM)


@contextmanager
def without_autocommit() -> Iterator[None]:
    """Turn autocommit off for the database `postgres`, as `AUTOCOMMIT = False` in `DATABASES` does."""
    connection = connections["postgres"]
    connection.close()
    try:
        with mock.patch.dict(connection.settings_dict, AUTOCOMMIT=False):
            yield
    finally:
        connection.close()


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
            """A dict that can be referred to weakly."""

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


class TestWithoutAutocommit:
    @in_tables
    @pytest.mark.usefixtures("engine")
    def test_a_rollback_sends_nothing_and_uses_no_position(self, own: str) -> None:
        with manual(own):
            assert broadcast("a", 1) is None
            transaction.rollback(using=own)
        assert broadcast("a", 2) == position("a")
        assert [(entry.position.offset, entry.data) for entry in history("a")] == [(1, 2)]

    @in_tables
    @pytest.mark.usefixtures("engine")
    def test_a_committed_broadcast_comes_before_the_next_one(self, own: str) -> None:
        with manual(own):
            broadcast("a", 1)
            broadcast_batch([("a", 2), ("b", 3)])
            transaction.commit(using=own)
        broadcast("a", 4)
        broadcast("b", 5)
        assert data() == [1, 2, 4]
        assert data("b") == [3, 5]

    # On SQLite, such a block commits, because it ends a savepoint without a BEGIN before it.
    @pytest.mark.parametrize("alias", ["postgres"], indirect=True)
    @pytest.mark.usefixtures("engine")
    def test_an_atomic_block_inside_a_manual_transaction_is_part_of_it(self, own: str) -> None:
        with manual(own):
            with transaction.atomic(using=own):
                assert broadcast("a", 1) is None
            transaction.rollback(using=own)
        broadcast("a", 2)
        assert data() == [2]

    @elsewhere
    @pytest.mark.usefixtures("engine")
    def test_a_broadcast_that_cannot_wait_for_the_commit_is_an_error(self, own: str) -> None:
        for using in (None, own):
            with manual(own), pytest.raises(BroadcastError, match=r"autocommit is off on database .*immediate=True"):
                broadcast("a", 1, using=using)
        assert data() == []

    @every_engine
    @every_call
    @pytest.mark.usefixtures("engine")
    def test_everything_else_cannot_wait_either(self, own: str, call: Callable[[], object], remedy: str) -> None:
        broadcast("a", 1)
        before = everything()
        with manual(own):
            with pytest.raises(BroadcastError, match=rf"autocommit is off .* \(set_autocommit\(False\)\).*{remedy}"):
                call()
            transaction.commit(using=own)
        assert everything() == before

    @every_engine
    @pytest.mark.usefixtures("engine")
    def test_two_transactions_cannot_be_awaited_if_one_is_manual(self, own: str, other: str) -> None:
        broadcast("a", 1)
        before = everything()
        with manual(own), transaction.atomic(using=other), pytest.raises(BroadcastError, match="autocommit is off"):
            broadcast("a", 2)
        assert everything() == before

    @in_tables
    @pytest.mark.usefixtures("engine")
    def test_the_test_kit_says_before_it_stores_that_it_cannot_see_the_commit(self, own: str) -> None:
        with isolated_cable(ENGINE=get_settings().engine, KEY_PREFIX=get_settings().key_prefix), manual(own):
            with pytest.raises(BroadcastError, match="Nothing was sent: autocommit is off"):
                broadcast("a", 1)
            transaction.commit(using=own)
        broadcast("a", 2)
        assert data() == [2]

    @pytest.mark.parametrize("alias", ["memory", redis_param], indirect=True)
    @every_call
    @pytest.mark.usefixtures("engine")
    def test_an_atomic_block_whose_end_commits_nothing_is_an_error(
        self, call: Callable[[], object], remedy: str
    ) -> None:
        """With `AUTOCOMMIT = False` in the settings, Django never runs the hooks of such a block."""
        before = everything()
        with without_autocommit():
            with transaction.atomic(using="postgres"):
                with pytest.raises(BroadcastError, match=rf"AUTOCOMMIT in DATABASES.*{remedy}"):
                    call()
                assert connections["postgres"].run_on_commit == []
            transaction.commit(using="postgres")
        assert everything() == before

    @pytest.mark.parametrize("alias", ["postgres"], indirect=True)
    @pytest.mark.usefixtures("engine")
    def test_such_a_block_stores_the_messages_of_its_own_database(self) -> None:
        with without_autocommit():
            with transaction.atomic(using="postgres"):
                assert broadcast("a", 1) is None
            transaction.commit(using="postgres")
            assert connections["postgres"].run_on_commit == []
        broadcast("a", 2)
        assert data() == [1, 2]

    @pytest.mark.parametrize("alias", ["memory"], indirect=True)
    @pytest.mark.usefixtures("engine")
    def test_a_change_of_a_login_is_not_announced(self, own: str, caplog: pytest.LogCaptureFixture) -> None:
        with manual(own):
            user = User.objects.db_manager(own).create_user("ann")
            user.set_password("new")
            user.save()
        (line,) = [record.message for record in caplog.records if "could not be announced" in record.message]
        assert "autocommit is off" in line
        assert "immediate" not in line

    @pytest.mark.parametrize("alias", ["memory", "postgres", redis_param], indirect=True)
    @pytest.mark.usefixtures("engine")
    def test_an_immediate_broadcast_is_stored_outside_the_transaction(self, own: str) -> None:
        with manual(own):
            with connections[own].cursor() as cursor:
                cursor.execute("SELECT 1")
            assert broadcast("a", 1, immediate=True) is not None
            transaction.rollback(using=own)
        assert data() == [1]


@pytest.fixture
def failures() -> Iterator[list[tuple[type, str, Exception]]]:
    """The arguments of each `broadcast_failed` signal."""
    heard: list[tuple[type, str, Exception]] = []

    def receive(sender: type, stream: str, error: Exception, **kwargs: Any) -> None:
        heard.append((sender, stream, error))
        raise RuntimeError("a receiver's own error")

    broadcast_failed.connect(receive)
    yield heard
    broadcast_failed.disconnect(receive)


Failures = list[tuple[type, str, Exception]]


class TestAStoreThatFailsAfterTheCommit:
    """Make a step inside the memory and model stores fail, or make Redis unreachable."""

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
