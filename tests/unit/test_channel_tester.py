"""`ChannelTester`, a part of the test kit, works in the transaction of a `TestCase`."""

# ruff: noqa: PT009, PT027 - these are Django's tests, not pytest's

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.utils import translation

from reliable_cable import (
    AsyncContextError,
    CableConsumer,
    Channel,
    ChannelError,
    abroadcast,
    action,
    disconnect,
    presence_for,
    state,
)
from reliable_cable.testing import CableTestCase, CallFailed, ChannelTester, client_socket


class NotesChannel(Channel):
    name = "test-kit-notes"
    count = state(default=0)

    def subscribed(self) -> None:
        if self.params.get("fail"):
            raise ZeroDivisionError
        if self.params.get("secret"):
            raise PermissionDenied("It is secret.")
        if self.params.get("members") and not self.user.is_authenticated:
            return self.reject()
        self.stream_from("notes")
        self.presence.join(self.user.pk or "nobody", {"name": self.user.get_username()})
        self.transmit({"hello": self.user.get_username()})

    def before_action(self, action: str, data: Any) -> bool:
        return "stranger" not in data

    @action
    def add(self, data: dict[str, Any]) -> Any:
        self.count += 1
        user = User.objects.create(username=data["name"])
        with transaction.atomic():
            NotesChannel.broadcast_to("all", {"id": user.pk})
        return {"id": user.pk}

    @action
    async def aadd(self, data: dict[str, Any]) -> Any:
        self.count += 1
        user = await User.objects.acreate(username=data["name"])
        await abroadcast("test-kit-notes:all", {"id": user.pk})
        self.transmit("added")
        return user.pk

    @action
    def bridge(self) -> list[str]:
        """Call async code, which calls sync code in the thread of this handler."""
        return async_to_sync(self.names)()

    async def names(self) -> list[str]:
        await abroadcast("test-kit-notes:all", "bridge")
        return [user.username async for user in User.objects.order_by("pk")]

    @action
    def fail(self) -> None:
        raise ZeroDivisionError

    @action
    def forbid(self) -> None:
        raise PermissionDenied("Not you.")

    @action
    def leave(self) -> None:
        self.reject()

    @action
    def language(self) -> str:
        return translation.get_language()

    @action
    async def wait(self) -> None:
        await asyncio.Event().wait()

    @action
    def spoil(self) -> None:
        self.count = object()  # type: ignore[assignment]  # no JSON value

    @action
    def follow(self) -> None:
        self.stop_all_streams()
        self.stream_for("all")

    def unsubscribed(self) -> None:
        User.objects.get_or_create(username="gone")


class ChannelTesterTest(CableTestCase):
    def setUp(self) -> None:
        self.ann = User.objects.create(username="ann")

    def test_a_subscription(self) -> None:
        notes = ChannelTester(NotesChannel, user=self.ann)
        self.assertTrue(notes.subscribe())
        self.assertFalse(notes.rejected)
        self.assertEqual(notes.streams, ["notes"])
        self.assertEqual(notes.presence, (str(self.ann.pk), {"name": "ann"}))
        self.assertEqual(notes.transmissions, [{"hello": "ann"}])
        self.assertEqual(notes.state, {})
        self.assertEqual(list(presence_for("notes").info().records or {}), [str(self.ann.pk)])

    def test_actions(self) -> None:
        notes = ChannelTester(NotesChannel, user=self.ann)
        notes.subscribe()
        with self.assertBroadcasts("test-kit-notes:all", 1) as broadcasts:
            result = notes.perform("add", {"name": "bob"})
        bob = User.objects.get(username="bob")
        self.assertEqual(result, {"id": bob.pk})
        self.assertEqual([each.data for each in broadcasts], [{"id": bob.pk}])
        self.assertEqual(notes.state, {"count": 1})
        self.assertEqual(notes.perform("aadd", {"name": "carol"}), User.objects.get(username="carol").pk)
        self.assertEqual(notes.transmissions, [{"hello": "ann"}, "added"])
        notes.perform("follow")
        self.assertEqual(notes.streams, ["test-kit-notes:all"])

    def test_a_sync_action_that_calls_async_code(self) -> None:
        notes = ChannelTester(NotesChannel, user=self.ann)
        notes.subscribe()
        with self.assertBroadcasts("test-kit-notes:all", 1, matching="bridge"):
            self.assertEqual(notes.perform("bridge"), ["ann"])

    def test_errors_of_actions_reach_the_test(self) -> None:
        notes = ChannelTester(NotesChannel)
        notes.subscribe()
        with self.assertRaises(ZeroDivisionError):
            notes.perform("fail")
        with self.assertRaises(PermissionDenied):
            notes.perform("forbid")
        with self.assertRaises(CallFailed) as caught:
            notes.perform("add", {"stranger": True})
        self.assertEqual(caught.exception.reason, "refused")
        with self.assertRaises(CallFailed) as caught:
            notes.perform("nothing")
        self.assertEqual(caught.exception.reason, "unknown_action")

    def test_rejections(self) -> None:
        notes = ChannelTester(NotesChannel, params={"members": True})
        self.assertFalse(notes.subscribe())
        self.assertTrue(notes.rejected)
        self.assertIn("reject()", notes.rejection)
        self.assertEqual(notes.streams, [])
        self.assertIsNone(notes.presence)
        with self.assertRaisesRegex(AssertionError, "reject()"):
            self.assertIsNone(notes.state)
        notes = ChannelTester(NotesChannel, params={"secret": True})
        self.assertFalse(notes.subscribe())
        self.assertIn("It is secret.", notes.rejection)
        notes = ChannelTester(NotesChannel, params={"fail": True})
        with self.assertRaises(ZeroDivisionError):
            notes.subscribe()

    def test_unsubscribing(self) -> None:
        notes = ChannelTester(NotesChannel)
        notes.subscribe()
        notes.unsubscribe()
        self.assertTrue(User.objects.filter(username="gone").exists())
        with self.assertRaises(CallFailed) as caught:
            notes.perform("add", {"name": "bob"})
        self.assertEqual(caught.exception.reason, "not_subscribed")

    def test_a_closed_client_subscribes_anew(self) -> None:
        notes = ChannelTester(NotesChannel, user=self.ann)
        self.assertTrue(notes.subscribe())
        notes.perform("add", {"name": "bob"})
        notes.close()
        self.assertTrue(notes.subscribe())
        self.assertEqual(notes.state, {})

    def test_a_client_that_the_server_disconnects(self) -> None:
        notes = ChannelTester(NotesChannel, user=self.ann)
        self.assertTrue(notes.subscribe())
        disconnect(user=self.ann)
        for call in (partial(notes.perform, "follow"), notes.subscribe):
            with self.assertRaisesRegex(ConnectionError, "remote"):
                call()
            self.assertEqual(notes.streams, [])

    def test_an_action_that_rejects(self) -> None:
        notes = ChannelTester(NotesChannel)
        notes.subscribe()
        notes.perform("leave")
        self.assertTrue(notes.rejected)
        self.assertEqual(notes.streams, [])

    def test_an_error_after_the_handler_reaches_the_test(self) -> None:
        notes = ChannelTester(NotesChannel)
        notes.subscribe()
        with self.assertRaisesRegex(ChannelError, "JSON values"):
            notes.perform("spoil")

    def test_a_handler_that_does_not_end(self) -> None:
        notes = ChannelTester(NotesChannel)
        notes.subscribe()
        with mock.patch.object(client_socket, "TIMEOUT", 0.05):
            with self.assertRaisesRegex(AssertionError, "still running"):
                notes.perform("wait")
            notes.close()

    def test_a_consumer_that_refuses(self) -> None:
        class Consumer(CableConsumer):
            def connect(self) -> None:
                raise PermissionDenied

        notes = ChannelTester(NotesChannel, consumer=Consumer)
        self.assertFalse(notes.subscribe())
        self.assertIn("unauthorized", notes.rejection)

    def test_what_middlewares_add_to_the_scope(self) -> None:
        class Consumer(CableConsumer):
            def connect(self) -> None:
                if self.scope["session"]["banned"]:
                    self.reject_connection()

        for banned in (False, True):
            notes = ChannelTester(
                NotesChannel, user=self.ann, consumer=Consumer, scope={"session": {"banned": banned}, "user": None}
            )
            self.assertIs(notes.subscribe(), not banned)

    def test_the_consumer_surrounds_the_handlers(self) -> None:
        class Consumer(CableConsumer):
            @contextmanager
            def around_command(self) -> Iterator[None]:
                with translation.override("de"):
                    yield

        notes = ChannelTester(NotesChannel, consumer=Consumer)
        notes.subscribe()
        self.assertEqual(notes.perform("language"), "de")

    def test_mistakes_in_tests(self) -> None:
        notes = ChannelTester(NotesChannel)
        notes.subscribe()
        with self.assertRaisesRegex(RuntimeError, "already subscribed"):
            notes.subscribe()

        class Other(Channel, abstract=True):
            name = "test-kit-notes"

        with self.assertRaisesRegex(ValueError, "Other"):
            ChannelTester(Other)

    def test_two_clients_share_streams(self) -> None:
        for user in (self.ann, None):
            ChannelTester(NotesChannel, user=user).subscribe()
        self.assertEqual(len(presence_for("notes").info().records or {}), 2)

    async def test_sync_methods_in_async_code(self) -> None:
        with self.assertRaisesRegex(AsyncContextError, "asubscribe"):
            ChannelTester(NotesChannel).subscribe()

    async def test_the_same_in_async_code(self) -> None:
        async with ChannelTester(NotesChannel, user=self.ann) as notes:
            self.assertTrue(await notes.asubscribe())
            with self.assertBroadcasts("test-kit-notes:all", 1):
                await notes.aperform("add", {"name": "bob"})
            self.assertEqual(notes.state, {"count": 1})
            self.assertTrue(await User.objects.filter(username="bob").aexists())


def test_a_test_that_is_not_isolated_is_told_what_to_use() -> None:
    with pytest.raises(RuntimeError, match=r"Use .*CableTestCase"):
        ChannelTester(NotesChannel)
