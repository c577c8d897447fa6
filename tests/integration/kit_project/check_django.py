"""Tests of the project with Django's test runner. tests/integration/test_kit.py runs them."""

# ruff: noqa: PT009 - these are Django's tests, not pytest's

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.models import User
from django.test import TestCase, TransactionTestCase

from reliable_cable import abroadcast, broadcast, history
from reliable_cable.testing import CableCommunicator, CableTestMixin, ChannelTester

from .cable import RoomChannel
from .settings import KIT_ENGINE


class RoomTests(CableTestMixin):
    """The tests, which each subclass runs with another kind of test case."""

    cable_settings: ClassVar[dict[str, Any]] = {"ENGINE": KIT_ENGINE}

    def setUp(self: Any) -> None:
        self.ann = User.objects.create_user("ann")
        self.assertEqual(history("RoomChannel:1"), [])
        broadcast("RoomChannel:1", "early")

    def test_a_channel(self: Any) -> None:
        room = ChannelTester(RoomChannel, user=self.ann, params={"room": 1})
        self.assertTrue(room.subscribe())
        with self.assertBroadcasts("RoomChannel:1", 1, matching="hello"):
            self.assertEqual(room.perform("speak", {"text": "hello"}), 1)
        self.assertEqual([entry.data for entry in history("RoomChannel:1")], ["early", "hello"])
        self.assertTrue(User.objects.filter(username="hello").exists())

    async def test_a_connection(self: Any) -> None:
        await self.async_client.aforce_login(self.ann)
        async with CableCommunicator(client=self.async_client) as cable:
            room = await cable.subscribe(RoomChannel, {"room": 1})
            await room.perform("speak", {"text": "hello"})
            self.assertEqual(await cable.receive(), "hello")
            await cable.disconnect()
            await abroadcast("RoomChannel:1", "missed")
            self.assertTrue(await cable.reconnect())
            self.assertEqual(await cable.received(), ["missed"])


class TestCaseTest(RoomTests, TestCase):
    """Runs each test in a transaction that is rolled back."""


class TransactionTestCaseTest(RoomTests, TransactionTestCase):
    """Runs each test on a database that is flushed afterwards."""


class ThreadsTest(RoomTests, TransactionTestCase):
    """Runs handlers in threads that have database connections of their own."""

    cable_settings: ClassVar[dict[str, Any]] = {"ENGINE": KIT_ENGINE, "HANDLER_THREADS": 2}
