"""Broadcasts of the model store in transactions, and crashes and failures after the commit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError, transaction
from django.db.models import signals
from django.test import TestCase

from reliable_cable import models
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError
from reliable_cable.stores.database.database import WRITE_RETRY_TIME
from reliable_cable.stores.streams.base import YOUNG_TIME, Message
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_numbering import Numbering
from tests.stores.conftest import MODEL_STORES, POSTGRES, SQLITE, Clock, MakeStore, until, with_own_connection
from tests.stores.test_streams import append, kept, on_commit

model_stores = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
postgres_only = pytest.mark.parametrize("alias", [POSTGRES], indirect=True)
sqlite_only = pytest.mark.parametrize("alias", [SQLITE], indirect=True)


def waiting(alias: str) -> int:
    return models.OutboxEntry.objects.using(alias).count()


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function. After it has been called, commit hooks of stores do nothing, as if the process had crashed."""

    def arrange() -> None:
        monkeypatch.setattr(ModelStreamStore, "_number_after_commit", lambda self, names: None)

    return arrange


@model_stores
class TestAfterTheCommit:
    def test_messages_wait_for_the_commit_and_are_numbered_in_order(self, store: ModelStreamStore, alias: str) -> None:
        with transaction.atomic(using=alias):
            on_commit(store, "1", "2")
            on_commit(store, "3")
            on_commit(store, "1", stream="b")
            assert kept(store) == []
        assert kept(store) == [(1, "1"), (2, "2"), (3, "3")]
        assert kept(store, "b") == [(1, "1")]
        assert waiting(alias) == 0

    def test_a_rollback_stores_nothing_and_uses_no_offset(self, store: ModelStreamStore, alias: str) -> None:
        with transaction.atomic(using=alias):
            on_commit(store, "1")
            transaction.set_rollback(True, using=alias)
        assert append(store, "2") == [1]
        assert kept(store) == [(1, "2")]

    def test_a_broadcast_in_an_on_commit_hook_does_not_wait_for_the_write_before_it(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        def audit(**kwargs: Any) -> None:
            transaction.on_commit(lambda: append(store, "1", stream="audit"), using=alias)

        signals.post_save.connect(audit, sender=models.TransientEntry)
        try:
            started = time.monotonic()
            store.publish_transient("a", Message("1"))
        finally:
            signals.post_save.disconnect(audit, sender=models.TransientEntry)
        assert kept(store, "audit") == [(1, "1")]
        assert time.monotonic() - started < WRITE_RETRY_TIME

    def test_the_rollback_of_a_savepoint_removes_its_messages_only(self, store: ModelStreamStore, alias: str) -> None:
        with transaction.atomic(using=alias):
            on_commit(store, "1")
            with transaction.atomic(using=alias):
                on_commit(store, "2")
                transaction.set_rollback(True, using=alias)
            with transaction.atomic(using=alias):
                on_commit(store, "3")
        assert kept(store) == [(1, "1"), (2, "3")]

    def test_messages_without_a_transaction_are_stored_at_once(self, store: ModelStreamStore) -> None:
        on_commit(store, "1")
        assert kept(store) == [(1, "1")]

    def test_a_repeated_key_is_stored_once(self, store: ModelStreamStore, alias: str) -> None:
        append(store, "1", key="k")
        with transaction.atomic(using=alias):
            on_commit(store, "2", "3", key="k")
            on_commit(store, "4", "5", key="new")
        assert kept(store) == [(1, "1"), (2, "4")]
        assert waiting(alias) == 0

    def test_more_than_one_batch_is_numbered_too(self, store: ModelStreamStore, alias: str) -> None:
        with (
            mock.patch("reliable_cable.stores.streams.model_numbering.ROWS_PER_TRANSACTION", 3),
            transaction.atomic(using=alias),
        ):
            on_commit(store, *"12345678")
        assert [data for _, data in kept(store)] == list("12345678")

    def test_a_stream_that_keeps_no_history_is_refused(self, make_store: MakeStore, alias: str) -> None:
        store = make_store(history_size=0)
        with transaction.atomic(using=alias), pytest.raises(BroadcastError, match="keeps no history"):
            on_commit(store, "1")
        assert not models.OutboxEntry.objects.using(alias).exists()


@model_stores
class TestCrashes:
    def test_the_next_append_numbers_messages_that_a_crash_left_first(
        self, store: ModelStreamStore, alias: str, crash: Callable[[], None]
    ) -> None:
        crash()
        with transaction.atomic(using=alias):
            on_commit(store, "1", "2")
        assert kept(store) == []
        assert append(store, "3") == [3]
        assert [data for _, data in kept(store)] == list("123")

    def test_the_next_append_numbers_any_number_of_messages_that_a_crash_left(
        self, store: ModelStreamStore, alias: str, crash: Callable[[], None]
    ) -> None:
        crash()
        with mock.patch("reliable_cable.stores.streams.model_numbering.ROWS_PER_TRANSACTION", 3):
            with transaction.atomic(using=alias):
                on_commit(store, *"1234567")
            assert append(store, "8") == [8]
        assert [data for _, data in kept(store)] == list("12345678")

    async def test_the_poll_of_any_process_numbers_messages_that_a_crash_left(
        self, make_store: MakeStore, alias: str, crash: Callable[[], None]
    ) -> None:
        here, there = make_store(), make_store()
        heard: list[Any] = []
        listener = here.listen(heard.append)
        await listener.subscribe("a")
        crash()

        def broadcast() -> None:
            with transaction.atomic(using=alias):
                on_commit(there, "1", "2")

        await there._run(broadcast)
        await until(lambda: len(heard) == 2)
        await listener.close()
        assert [(event.entry.offset, event.entry.data) for event in heard] == [(1, "1"), (2, "2")]

    def test_a_hook_that_fails_is_logged_and_does_not_fail_the_request(
        self, store: ModelStreamStore, alias: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        outage = mock.Mock(side_effect=OperationalError("gone away"))
        with mock.patch.object(Numbering, "write", outage), transaction.atomic(using=alias):
            on_commit(store, "1")
        assert "streams a were committed, but could not be numbered" in caplog.text
        store.number_outbox()
        assert kept(store) == [(1, "1")]

    def test_a_stream_that_cannot_be_numbered_delays_no_other_stream(
        self, store: ModelStreamStore, alias: str, crash: Callable[[], None]
    ) -> None:
        crash()
        with transaction.atomic(using=alias):
            on_commit(store, "1", stream="a")
            on_commit(store, "1", stream="b")
        write = Numbering.write

        def fail_for_a(self: Numbering, names: list[str], items: Any) -> Any:
            if names == ["a"]:
                raise OperationalError("a is cursed")
            return write(self, names, items)

        with (
            mock.patch.object(Numbering, "write", fail_for_a),
            pytest.raises(BroadcastError, match="a is cursed"),
        ):
            store.number_outbox()
        assert kept(store, "b") == [(1, "1")]
        assert waiting(alias) == 1

    def test_forget_also_deletes_messages_in_the_outbox(
        self, store: ModelStreamStore, alias: str, crash: Callable[[], None]
    ) -> None:
        crash()
        with transaction.atomic(using=alias):
            on_commit(store, "1")
        store.forget("a")
        assert append(store, "2") == [1]


@postgres_only
class TestImmediately:
    def test_an_immediate_broadcast_is_stored_outside_the_open_transaction(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        with transaction.atomic(using=alias):
            on_commit(store, "never")
            assert append(store, "1") == [1]
            store.publish_transient("a", Message("2"))
            transaction.set_rollback(True, using=alias)
        assert kept(store) == [(1, "1")]
        assert models.TransientEntry.objects.using(alias).count() == 1

    def test_transactions_that_broadcast_lock_nothing(self, store: ModelStreamStore, alias: str) -> None:
        append(store, "1")
        with transaction.atomic(using=alias):
            on_commit(store, "3")
            other = threading.Thread(target=with_own_connection(lambda: append(store, "2")))
            other.start()
            other.join(10)
            assert not other.is_alive()
        assert [data for _, data in kept(store)] == list("123")

    def test_transactions_that_commit_in_another_order_lose_nothing(self, store: ModelStreamStore, alias: str) -> None:
        inserted, go_on = threading.Event(), threading.Event()

        def slow_transaction() -> None:
            with transaction.atomic(using=alias):
                on_commit(store, "first in, last committed")
                inserted.set()
                assert go_on.wait(10)

        slow = threading.Thread(target=with_own_connection(slow_transaction))
        slow.start()
        assert inserted.wait(10)
        with transaction.atomic(using=alias):
            on_commit(store, "second")
        assert append(store, "third") == [2]
        go_on.set()
        slow.join()
        assert [data for _, data in kept(store)] == ["second", "third", "first in, last committed"]


class TestInATestCase(TestCase):
    """Without handler threads, the store does everything inside the transaction of the test case."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = ModelStreamStore(CableSettings(handler_threads=0, history_size=2), clock=self.clock)

    def test_appending(self) -> None:
        assert append(self.store, "1") == [1]
        assert append(self.store, *(str(n) for n in range(190))) == list(range(2, 192))
        self.clock.advance(YOUNG_TIME)
        assert append(self.store, "192") == [192]
        assert models.StreamEntry.objects.count() == 2

    def test_on_commit_callbacks(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            on_commit(self.store, "1")
            assert kept(self.store) == []
        assert kept(self.store) == [(1, "1")]

    def test_log_is_quiet(self) -> None:
        with self.assertNoLogs("reliable_cable", logging.WARNING):
            append(self.store, "1")
            self.store.publish_transient("a", Message("2"))
            self.store.prune()
            self.store.forget("a")
