"""The test kit captures broadcasts, inside and outside of transactions, and isolates the stores of tests."""

# ruff: noqa: PT009, PT027 - these are Django's tests, not pytest's

from __future__ import annotations

import unittest
from functools import partial
from typing import Any, ClassVar

import pytest
import redis
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models.signals import post_delete
from django.test import TestCase, TransactionTestCase, override_settings

from reliable_cable import abroadcast, broadcast, broadcast_batch, disconnect, forget, history, position
from reliable_cable.conf import get_settings
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.streams.memory import MemoryStreamStore
from reliable_cable.testing import (
    CableTestCase,
    CableTestMixin,
    CapturedBroadcast,
    assert_broadcasts,
    assert_no_broadcasts,
    capture_broadcasts,
    isolated_cable,
)
from reliable_cable.testing.isolation import current_isolation
from tests.support.redis import RedisServer


class AfterCommitTests(CableTestMixin):
    """Tests that run in a `TestCase`, whose transaction never commits, and in a `TransactionTestCase`."""

    def test_a_broadcast_outside_of_transactions_is_sent_at_once(self: Any) -> None:
        with self.captureBroadcasts() as broadcasts:
            self.assertIsNotNone(broadcast("room", 1))
            self.assertEqual(broadcasts, [CapturedBroadcast("room", 1)])
        self.assertEqual([entry.data for entry in history("room")], [1])

    def test_a_broadcast_is_sent_after_the_outermost_transaction(self: Any) -> None:
        with self.captureBroadcasts() as broadcasts, transaction.atomic():
            with transaction.atomic():
                self.assertIsNone(broadcast("room", 1))
            broadcast("room", 2, transient=True)
            self.assertEqual(broadcasts, [])
        self.assertEqual([each.data for each in broadcasts], [1, 2])
        self.assertEqual([each.transient for each in broadcasts], [False, True])
        self.assertEqual([entry.data for entry in history("room")], [1])

    def test_a_broadcast_that_is_rolled_back_never_happens(self: Any) -> None:
        with self.captureBroadcasts() as broadcasts:
            with transaction.atomic():
                broadcast("room", 1)
                with self.assertRaises(ZeroDivisionError), transaction.atomic():
                    broadcast("room", 2)
                    raise ZeroDivisionError
            with self.assertRaises(ZeroDivisionError), transaction.atomic():
                broadcast("room", 3)
                raise ZeroDivisionError
        self.assertEqual([each.data for each in broadcasts], [1])

    def test_a_broadcast_in_a_block_without_a_savepoint_is_sent(self: Any) -> None:
        def receiver(**kwargs: Any) -> None:
            broadcast("room", 1)

        post_delete.connect(receiver, sender=User)
        try:
            with self.assertBroadcasts("room", 1):
                User.objects.create(username="ann").delete()
        finally:
            post_delete.disconnect(receiver, sender=User)

    def test_broadcasts_of_hooks_are_captured(self: Any) -> None:
        with self.assertBroadcasts("room", 2):
            transaction.on_commit(partial(broadcast, "room", 1))
            with transaction.atomic():
                transaction.on_commit(lambda: transaction.on_commit(partial(broadcast, "room", 2)))

    def test_an_error_of_a_robust_hook_is_logged(self: Any) -> None:
        with self.assertLogs(level="ERROR"), self.assertBroadcasts("room", 1):
            transaction.on_commit(lambda: 1 / 0, robust=True)
            transaction.on_commit(partial(broadcast, "room", 1))

    def test_immediate_broadcasts_do_not_wait(self: Any) -> None:
        with self.captureBroadcasts() as broadcasts, transaction.atomic():
            broadcast("room", 1, immediate=True)
            self.assertEqual(len(broadcasts), 1)

    def test_a_repeated_broadcast_is_not_captured(self: Any) -> None:
        broadcast("room", 1, idempotency_key="a")
        with self.captureBroadcasts() as broadcasts:
            broadcast("room", 1, idempotency_key="a")
            with transaction.atomic():
                broadcast("room", 2, idempotency_key="b")
            broadcast("room", 2, idempotency_key="b")
        self.assertEqual([each.data for each in broadcasts], [2])
        self.assertEqual([entry.data for entry in history("room")], [1, 2])

    async def test_async_broadcasts(self: Any) -> None:
        with self.captureBroadcasts() as broadcasts:
            await abroadcast("room", 1)
        self.assertEqual([each.data for each in broadcasts], [1])

    def test_other_calls_wait_for_the_commit_too(self: Any) -> None:
        user = User.objects.create(username="ann")
        broadcast("room", 1)
        with transaction.atomic():
            forget("room")
            disconnect(user=user)
            self.assertEqual(position("room").offset, 1)
        self.assertEqual(position("room").offset, 0)


class TestInATestCase(AfterCommitTests, TestCase):
    def test_captured_hooks_run_once(self) -> None:
        with self.captureBroadcasts() as broadcasts:
            with self.captureOnCommitCallbacks(execute=True):
                with transaction.atomic():
                    broadcast("room", 1)
                transaction.on_commit(partial(broadcast, "room", 2))
            with transaction.atomic(), self.captureOnCommitCallbacks(execute=True):
                broadcast("room", 3)
        self.assertEqual([each.data for each in broadcasts], [1, 2, 3])


class TestDataOfAClass(CableTestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        broadcast("room", "data of the class")

    def test_hooks_of_the_class_are_not_called(self) -> None:
        """If these hooks were called, they would send the broadcast through the engine of the settings."""
        hooks = len(transaction.get_connection().run_on_commit)
        self.assertGreater(hooks, 0)
        with self.assertBroadcasts("room", 1, matching="data of the test"), transaction.atomic():
            broadcast("room", "data of the test")
        self.assertEqual(len(transaction.get_connection().run_on_commit), hooks)


class TestInATransaction(AfterCommitTests, TransactionTestCase):
    pass


class TestOnTheDatabase(AfterCommitTests, TestCase):
    cable_settings: ClassVar[dict[str, Any]] = {"ENGINE": "database"}


class TestOnTheDatabaseInATransaction(AfterCommitTests, TransactionTestCase):
    cable_settings: ClassVar[dict[str, Any]] = {"ENGINE": "database"}


@pytest.mark.postgres
class TestOnTwoDatabases(CableTestCase):
    databases = "__all__"

    def test_a_broadcast_waits_for_the_transactions_of_both(self) -> None:
        with self.captureBroadcasts() as broadcasts:
            with transaction.atomic(), transaction.atomic(using="postgres"):
                broadcast("room", 1)
            self.assertEqual(len(broadcasts), 1)
            with transaction.atomic():
                with transaction.atomic(using="postgres"):
                    broadcast("room", 2, using="postgres")
                self.assertEqual(len(broadcasts), 2)
            with self.assertRaises(ZeroDivisionError), transaction.atomic():
                with transaction.atomic(using="postgres"):
                    broadcast("room", 3)
                raise ZeroDivisionError
        self.assertEqual([each.data for each in broadcasts], [1, 2])


class AssertionsTest(CableTestCase):
    def test_counts(self) -> None:
        with self.assertBroadcasts("room") as broadcasts:
            broadcast_batch([("room", {"id": 1, "author": {"name": "ann", "age": 3}}), ("room", 2), ("other", 3)])
        self.assertEqual([each.data for each in broadcasts][1:], [2])
        with self.assertBroadcasts("room", 1, matching={"author": {"name": "ann"}}):
            broadcast_batch(
                [("room", {"id": 1, "author": {"name": "ann", "age": 3}}), ("room", {"id": 2}), ("room", 2)]
            )
        with self.assertBroadcasts("room", 1, matching=2), self.assertBroadcasts("room", 2):
            broadcast_batch([("room", 2), ("room", 3)])
        with self.assertBroadcasts("room", 1, matching=lambda data: data > 2):
            broadcast_batch([("room", 2), ("room", 3)])
        with self.assertBroadcasts("room", 0):
            pass
        with self.assertNoBroadcasts():
            pass
        with self.assertNoBroadcasts("room"), self.assertNoBroadcasts("other", matching=3):
            broadcast("other", 4)

    def test_a_failure_shows_what_was_broadcast(self) -> None:
        with self.assertRaises(AssertionError) as caught, self.assertBroadcasts("room", 1, matching={"id": 1}):
            broadcast("room", {"id": 2})
            broadcast("other", "text", transient=True)
        self.assertEqual(
            str(caught.exception),
            "Expected 1 broadcast to 'room' matching {'id': 1}, but there were 0. These were broadcast:\n"
            "  'room': {'id': 2}\n"
            "  'other': 'text' (transient)",
        )
        with self.assertRaisesRegex(AssertionError, "at least 1 broadcast to 'room', .* Nothing was broadcast"):
            with assert_broadcasts("room"):
                pass
        with self.assertRaisesRegex(AssertionError, r"Expected no broadcast. These were broadcast:\n  'room': 1"):
            with assert_no_broadcasts():
                broadcast("room", 1)
        with self.assertRaisesRegex(AssertionError, "no broadcast to 'room' matching 1"):
            with self.assertNoBroadcasts("room", matching=1):
                broadcast("room", 1)

    def test_a_failure_names_an_open_transaction(self) -> None:
        with transaction.atomic(), self.assertRaisesRegex(AssertionError, "still open on 'default'"):
            with self.assertBroadcasts("room"):
                broadcast("room", 1)

    async def test_a_failure_in_an_async_test_tells_of_hooks(self) -> None:
        with self.assertRaisesRegex(AssertionError, "functions that were passed to `on_commit` are not called"):
            with self.assertBroadcasts("room"):
                await sync_to_async(transaction.on_commit)(partial(broadcast, "room", 1))

    def test_an_error_in_the_context_is_not_replaced(self) -> None:
        with self.assertRaises(ZeroDivisionError), self.assertBroadcasts("room"):
            transaction.on_commit(partial(broadcast, "room", 1))
            raise ZeroDivisionError


class IsolationTest(CableTestCase):
    def setUp(self) -> None:
        self.isolation = current_isolation()

    def test_a_test_leaves_nothing(self) -> None:
        class Inner(CableTestCase):
            def test_1(self) -> None:
                broadcast("room", 1)

            def test_2(self) -> None:
                self.assertEqual(history("room"), [])

        result = unittest.TestResult()
        for name in ("test_1", "test_2"):
            Inner(name).run(result)
        self.assertEqual((result.testsRun, result.failures, result.errors), (2, [], []))

    def test_an_error_at_the_end_is_an_error_of_the_test(self) -> None:
        class Inner(CableTestCase):
            def test_it(self) -> None:
                current_isolation().cleanups.callback(lambda: 1 / 0)

            @unittest.skip("")
            def test_skipped(self) -> None:
                pass

        result = unittest.TestResult()
        Inner("test_it").run(result)
        Inner("test_skipped").run(result)
        self.assertEqual((len(result.errors), len(result.skipped)), (1, 1))
        self.assertIn("ZeroDivisionError", result.errors[0][1])
        self.assertIs(current_isolation(), self.isolation)

    @override_settings(RELIABLE_CABLE={"HISTORY_SIZE": 2, "ENGINE": "database"})
    def test_other_settings_can_be_changed(self) -> None:
        self.assertEqual(get_settings().history_size, 2)
        self.assertIsInstance(get_engine().streams, MemoryStreamStore)

    def test_captures_need_no_base_class(self) -> None:
        with isolated_cable(HISTORY_SIZE=3), capture_broadcasts() as broadcasts:
            broadcast("room", 1)
            self.assertEqual(get_settings().history_size, 3)
        self.assertEqual(len(broadcasts), 1)
        self.assertEqual(history("room"), [])


def test_captures_outside_of_a_test_case_are_isolated() -> None:
    with capture_broadcasts() as broadcasts:
        broadcast("room", 1)
    assert [each.data for each in broadcasts] == [1]


def test_an_isolated_redis_is_empty_afterwards(redis_server: RedisServer) -> None:
    keys: list[set[str]] = []
    for _ in range(2):
        with isolated_cable(ENGINE="redis", REDIS_URL=redis_server.url):
            assert history("room") == []
            with assert_broadcasts("room", 1):
                broadcast("room", 1)
            assert len(history("room")) == 1
            keys.append({get_settings().key_prefix})
    assert keys[0] != keys[1]
    prefixes = set.union(*keys)
    with redis.Redis.from_url(redis_server.url) as client:
        assert [key for key in client.keys() if key.decode().partition(":")[0] in prefixes] == []


@pytest.mark.parametrize("name", ["MAX_SUBSCRIPTION"])
def test_wrong_settings_are_refused(name: str) -> None:
    with pytest.raises(Exception, match="did you mean 'MAX_SUBSCRIPTIONS'"), isolated_cable(**{name: 1}):
        broadcast("room", 1)
