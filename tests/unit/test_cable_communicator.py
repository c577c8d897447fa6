"""`CableCommunicator`, a part of the test kit, works in the transaction of a `TestCase`."""

# ruff: noqa: PT009, PT027 - these are Django's tests, not pytest's

from __future__ import annotations

from typing import Any
from unittest import mock

from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.contrib.auth.models import User
from django.db import transaction
from django.urls import path

from reliable_cable import CableConsumer, Channel, abroadcast, action, adisconnect, broadcast, state
from reliable_cable.auth import CableAuthMiddlewareStack
from reliable_cable.testing import CableCommunicator, CableTestCase, CallFailed, client_socket


class RoomChannel(Channel):
    name = "test-kit-room"
    count = state(default=0)

    def subscribed(self) -> None:
        if self.params["room"] == 0:
            return self.reject()
        self.stream_from(f"room:{self.params['room']}")

    @action
    def speak(self, data: dict[str, Any]) -> None:
        with transaction.atomic():
            User.objects.create(username=data["text"])
            broadcast(f"room:{self.params['room']}", data["text"])

    @action
    def grow(self) -> int:
        self.count += 1
        return self.count

    @action
    def fail(self) -> None:
        raise ZeroDivisionError


class Consumer(CableConsumer):
    def connect(self) -> None:
        if not self.user.is_authenticated:
            self.reject_connection()


APPLICATION = AuthMiddlewareStack(URLRouter([path("cable", Consumer.as_asgi())]))
STACKS = {
    "channels": AllowedHostsOriginValidator(APPLICATION),
    "own": CableAuthMiddlewareStack(URLRouter([path("cable", Consumer.as_asgi())])),
}


class CableCommunicatorTest(CableTestCase):
    def setUp(self) -> None:
        self.ann = User.objects.create_user("ann")

    def connect(self, **options: Any) -> CableCommunicator:
        return CableCommunicator(APPLICATION, user=self.ann, **options)

    async def test_messages_and_positions(self) -> None:
        async with self.connect() as cable:
            self.assertEqual(cable.subprotocol, "actioncable-v1-ext-json")
            room = await cable.subscribe(RoomChannel, {"room": 1})
            self.assertTrue(room.confirmed)
            await abroadcast("room:1", "one")
            self.assertEqual(await cable.receive(), "one")
            await room.perform("speak", {"text": "two"})
            self.assertEqual(await room.receive(), "two")
            self.assertEqual([each["offset"] for each in room.positions.values()], [2])
            self.assertTrue(await User.objects.filter(username="two").aexists())
            self.assertEqual(await cable.received(), [])
            self.assertFalse((await cable.subscribe(RoomChannel, {"room": 0})).confirmed)

    async def test_calls(self) -> None:
        async with self.connect() as cable:
            room = await cable.subscribe(RoomChannel, {"room": 1})
            self.assertEqual([await room.call("grow") for _ in range(2)], [1, 2])
            with self.assertRaises(CallFailed) as caught:
                await room.call("fail")
            self.assertIsInstance(caught.exception.__cause__, ZeroDivisionError)
            await room.perform("fail")
            self.assertEqual([type(error) for error in cable.errors], [ZeroDivisionError] * 2)

    async def test_a_client_that_returns_receives_what_it_has_missed(self) -> None:
        async with self.connect() as cable:
            room = await cable.subscribe(RoomChannel, {"room": 1})
            await room.call("grow")
            await abroadcast("room:1", "before")
            self.assertEqual(await cable.receive(), "before")
            session = cable.session_id
            await cable.disconnect(1006)
            await abroadcast("room:1", "missed")
            self.assertTrue(await cable.reconnect())
            self.assertNotEqual(cable.session_id, session)
            self.assertEqual(cable.restored, [room.identifier])
            self.assertEqual(await cable.received(), ["missed"])
            self.assertEqual(await room.call("grow"), 2)

    async def test_a_session_is_restored_by_its_id(self) -> None:
        async with self.connect() as cable:
            room = await cable.subscribe(RoomChannel, {"room": 1})
        async with self.connect(session_id=cable.session_id) as again:
            self.assertEqual(again.restored, [room.identifier])
            restored = again.add_subscription(RoomChannel, {"room": 1})
            self.assertTrue(await restored.history())

    async def test_a_history_that_is_lost(self) -> None:
        async with self.connect() as cable:
            await cable.subscribe(RoomChannel, {"room": 1})
            await abroadcast("room:1", "first")
            await cable.receive()
            await cable.disconnect()
            for number in range(101):
                await abroadcast("room:1", number + 1)
            self.assertFalse(await cable.reconnect())

    async def test_history_since_a_time(self) -> None:
        await abroadcast("room:1", "early")
        async with self.connect() as cable:
            await cable.subscribe(RoomChannel, {"room": 1}, since=1)
            self.assertEqual(await cable.receive(), "early")

    async def test_the_base_protocol(self) -> None:
        async with self.connect(protocol="actioncable-v1-json") as cable:
            self.assertEqual(cable.subprotocol, "actioncable-v1-json")
            room = await cable.subscribe(RoomChannel, {"room": 1})
            await abroadcast("room:1", "one")
            self.assertEqual(await cable.receive(), "one")
            self.assertEqual(room.positions, {})
            self.assertTrue(await cable.reconnect())
            self.assertEqual(cable.restored, [])
            await abroadcast("room:1", "two")
            self.assertEqual(await cable.receive(), "two")

    async def test_unsubscribing(self) -> None:
        async with self.connect() as cable:
            room = await cable.subscribe(RoomChannel, {"room": 1})
            await room.unsubscribe()
            await abroadcast("room:1", "one")
            self.assertEqual(await cable.received(), [])

    async def test_the_user_of_a_test_client_connects(self) -> None:
        for name, application in STACKS.items():
            with self.subTest(name):
                cable = CableCommunicator(application, client=self.client)
                await sync_to_async(self.client.logout)()
                self.assertFalse(await cable.connect())
                self.assertEqual((cable.disconnect_reason, cable.close_code), ("unauthorized", 1000))
                await sync_to_async(self.client.force_login)(self.ann)
                self.assertTrue(await cable.connect())
                await cable.aclose()

    async def test_a_refused_connection_is_an_error_of_the_context(self) -> None:
        with self.assertRaisesRegex(AssertionError, "unauthorized"):
            async with CableCommunicator(APPLICATION):
                pass

    async def test_a_connection_that_the_server_closes(self) -> None:
        async with self.connect() as cable:
            await adisconnect(user=self.ann)
            with self.assertRaisesRegex(ConnectionError, "remote"):
                await cable.receive()
            self.assertEqual((cable.disconnect_reason, cable.close_code), ("remote", 1000))
            self.assertEqual(await cable.received(), [])
            with self.assertRaisesRegex(ConnectionError, "remote"):
                await cable.receive()

    async def test_errors_of_the_application_are_raised(self) -> None:
        class Broken(CableConsumer):
            def connect(self) -> None:
                raise ZeroDivisionError

        with self.assertRaises(ZeroDivisionError):
            await CableCommunicator(Broken.as_asgi()).connect()
        with self.assertRaisesRegex(ValueError, "No route found"):
            await self.connect(path="/wrong").connect()

    async def test_other_refusals(self) -> None:
        cable = self.connect(protocol="unknown")
        self.assertFalse(await cable.connect())
        self.assertEqual((cable.subprotocol, cable.disconnect_reason), (None, ""))
        with self.assertRaisesRegex(AssertionError, r"closed with the code 1000 before the welcome; see the log\."):
            async with self.connect(headers={"Origin": "https://example.com"}):
                pass
        self.assertFalse(await cable.reconnect())

    async def test_a_client_without_a_connection(self) -> None:
        cable = self.connect()
        for call in (cable.receive(), cable.send("ping")):
            with self.assertRaisesRegex(ConnectionError, "not connected"):
                await call
        await cable.aclose()

    async def test_the_error_shows_what_was_received_instead(self) -> None:
        async with self.connect() as cable:
            await cable.subscribe(RoomChannel, {"room": 1})
            await abroadcast("room:1", "one")
            await cable.settle()  # after this, the client has received the broadcast
            with (
                mock.patch.object(client_socket, "TIMEOUT", 0.05),
                self.assertRaisesRegex(AssertionError, "'message': 'one'"),
            ):
                await cable.receive_frame("confirm_history")
