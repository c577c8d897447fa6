"""Tests of the demo. Both `manage.py test` and the test suite of the package run them."""

# ruff: noqa: PT009 - these tests are written for Django's test runner, not for pytest

from __future__ import annotations

import re
from collections.abc import Awaitable

from channels.db import database_sync_to_async
from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import TestCase, override_settings

from reliable_cable import position
from reliable_cable.testing import CableCommunicator, CableTestCase, ChannelTester

from .accounts import create_demo_data
from .cable import ChatChannel, NewsChannel, post_message
from .models import Message, Room
from .robot import talk

cheap_passwords = override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"])


def match_group(pattern: str, text: str) -> str:
    """Return the text that the first group of a pattern matches. Fail the test if the pattern does not match."""
    match = re.search(pattern, text)
    if match is None:
        raise AssertionError(f"{pattern} is not in: {text}")
    return match[1]


#: The pages that require a login.
PAGES = "/ /rooms/lobby/ /rooms/lobby/turbo/ /rooms/lobby/htmx/ /rooms/lobby/htmx4/ /assistant/ /migrations/".split()


@cheap_passwords
class DemoDataTest(TestCase):
    """Tests of the creation of users and rooms."""

    def test_users_and_rooms_are_created_once_and_users_can_log_in(self) -> None:
        create_demo_data()
        create_demo_data()
        self.assertEqual(Room.objects.count(), 3)
        self.assertTrue(self.client.login(username="carol", password=settings.DEMO_PASSWORD))

    def test_alice_is_a_superuser_only_where_accounts_are_open(self) -> None:
        create_demo_data()
        self.assertEqual([user.username for user in User.objects.filter(is_superuser=True)], ["alice"])
        with override_settings(DEMO_OPEN_ACCOUNTS=False):
            create_demo_data()
        self.assertFalse(User.objects.filter(is_superuser=True).exists())
        self.assertFalse(User.objects.filter(is_staff=True).exists())

    def test_users_that_exist_get_the_password_of_the_settings(self) -> None:
        create_demo_data()
        former, current = settings.DEMO_PASSWORD, settings.DEMO_PASSWORD + "2"
        with override_settings(DEMO_PASSWORD=current):
            create_demo_data()
        self.assertFalse(self.client.login(username="carol", password=former))
        self.assertTrue(self.client.login(username="carol", password=current))

    def test_no_user_is_created_without_a_password(self) -> None:
        with override_settings(DEMO_PASSWORD=""), self.assertRaisesMessage(ImproperlyConfigured, "DEMO_PASSWORD"):
            create_demo_data()
        self.assertFalse(User.objects.exists())

    def test_the_migrations_are_complete(self) -> None:
        call_command("makemigrations", "--check", "--dry-run", verbosity=0)


@cheap_passwords
class PagesTest(TestCase):
    """Tests of the views."""

    @classmethod
    def setUpTestData(cls) -> None:
        create_demo_data()

    def setUp(self) -> None:
        self.client.force_login(User.objects.get(username="carol"))

    def test_every_page_requires_a_login(self) -> None:
        self.client.logout()
        for path in (*PAGES, "/rooms/lobby/messages/"):
            with self.subTest(path):
                self.assertRedirects(self.client.get(path), f"/login/?next={path}")
        for path in ("/rooms/lobby/robot/", "/rooms/lobby/say/", "/migrations/all/broadcast/"):
            with self.subTest(path):
                self.assertRedirects(self.client.post(path), f"/login/?next={path}")

    def test_the_login_page_shows_the_users_and_their_password(self) -> None:
        self.client.logout()
        page = self.client.get("/login/")
        self.assertContains(page, "login-bob")
        self.assertContains(page, settings.DEMO_PASSWORD)

    def test_a_private_room_is_hidden_from_other_users(self) -> None:
        self.assertNotContains(self.client.get("/"), "alice-and-bob")
        for path in ("/rooms/alice-and-bob/", "/rooms/alice-and-bob/messages/"):
            self.assertEqual(self.client.get(path).status_code, 404)
        self.assertEqual(self.client.post("/rooms/alice-and-bob/robot/").status_code, 404)
        self.assertEqual(self.client.post("/rooms/alice-and-bob/say/", {"text": "Hello"}).status_code, 404)

    def test_pages_comply_with_their_content_security_policy(self) -> None:
        for path in PAGES:
            with self.subTest(path):
                response = self.client.get(path)
                policy, page = response["Content-Security-Policy"], response.content.decode()
                self.assertIn("default-src 'self'", policy)
                nonce = match_group(r"'nonce-([\w-]+)'", policy)
                for tag in re.findall(r"<script[^>]*>", page):
                    self.assertIn(f'nonce="{nonce}"', tag)
                self.assertIsNone(re.search(r"<[^>]+\s(style|on\w+)=", page))
                for url in re.findall(r'(?:src|href)="/static/([^"]+)"', page):
                    if not url.startswith(("reliable_cable/", "npm/")):  # these files are built, and may be missing
                        self.assertIsNotNone(finders.find(url), url)

    def test_the_policy_has_a_new_nonce_each_time(self) -> None:
        first, second = (self.client.get("/")["Content-Security-Policy"] for _ in range(2))
        self.assertNotEqual(first, second)

    def test_a_room_shows_the_latest_messages_and_the_position_before_them(self) -> None:
        lobby = Room.objects.get(slug="lobby")
        for number in range(60):
            Message.objects.create(room=lobby, text=f"<b>{number}</b>", client_id=str(number))
        page = self.client.get("/rooms/lobby/").content.decode()
        self.assertEqual(re.findall(r"&lt;b&gt;(\d+)&lt;/b&gt;", page), [str(number) for number in range(10, 60)])
        self.assertIn(f'data-after="{position(ChatChannel.broadcasting_for(lobby))}"', page)

    def test_messages_after_an_id_are_paginated(self) -> None:
        lobby = Room.objects.get(slug="lobby")
        made = [Message.objects.create(room=lobby, text=str(number), client_id=str(number)) for number in range(250)]
        reply = self.client.get("/rooms/lobby/messages/", {"after": made[9].pk}).json()
        self.assertEqual([message["text"] for message in reply["messages"]], [str(n) for n in range(10, 210)])
        self.assertTrue(reply["more"])
        reply = self.client.get("/rooms/lobby/messages/", {"after": reply["messages"][-1]["id"]}).json()
        self.assertEqual([message["text"] for message in reply["messages"]], [str(n) for n in range(210, 250)])
        self.assertFalse(reply["more"])
        self.assertEqual(self.client.get("/rooms/lobby/messages/?after=x").status_code, 400)

    def test_the_robot_rejects_invalid_numbers(self) -> None:
        for data in ({"count": "0"}, {"count": "501"}, {"count": "x"}, {"interval": "-1"}):
            self.assertEqual(self.client.post("/rooms/lobby/robot/", data).status_code, 400)

    def test_the_code_shown_is_the_code_that_runs(self) -> None:
        page = self.client.get("/migrations/")
        self.assertContains(page, "import { createConsumer } from &quot;@anycable/web&quot;;")
        self.assertContains(page, "/static/chat/migrations/consumer.js")
        self.assertContains(page, "class NewsChannel(Channel):")


@cheap_passwords
class ChannelsTest(CableTestCase):
    """Tests of the rights to subscribe, and of presence and whispers in a room."""

    alice: User
    carol: User
    lobby: Room
    private: Room

    @classmethod
    def setUpTestData(cls) -> None:
        create_demo_data()
        cls.alice, cls.carol = (User.objects.get(username=name) for name in ("alice", "carol"))
        cls.lobby, cls.private = (Room.objects.get(slug=slug) for slug in ("lobby", "alice-and-bob"))

    def test_a_member_streams_the_room_and_joins_its_presence(self) -> None:
        room = ChannelTester(ChatChannel, user=self.alice, params={"room_id": self.private.pk})
        self.assertTrue(room.subscribe(), room.rejection)
        self.assertEqual(room.streams, [ChatChannel.broadcasting_for(self.private)])
        self.assertEqual(room.presence, (str(self.alice.pk), {"name": "alice"}))

    async def test_members_see_who_is_typing(self) -> None:
        async with CableCommunicator(user=self.alice) as alice, CableCommunicator(user=self.carol) as carol:
            room = await alice.subscribe(ChatChannel, {"room_id": self.lobby.pk})
            await carol.subscribe(ChatChannel, {"room_id": self.lobby.pk})
            await alice.send("whisper", identifier=room.identifier, data={"typing": "alice"})
            self.assertEqual(await carol.receive(), {"typing": "alice"})

    def test_other_users_are_rejected(self) -> None:
        for params in ({"room_id": self.private.pk}, {"room_id": "1"}, {"room_id": 10**6}, {}):
            with self.subTest(params):
                room = ChannelTester(ChatChannel, user=self.carol, params=params)
                self.assertFalse(room.subscribe())
                self.assertEqual(room.streams, [])

    def test_a_former_member_is_rejected(self) -> None:
        self.private.members.remove(self.alice)
        room = ChannelTester(ChatChannel, user=self.alice, params={"room_id": self.private.pk})
        self.assertFalse(room.subscribe())

    def test_topics_of_news_must_be_letters(self) -> None:
        for topic, confirmed in (("sports", True), ("", False), ("a:b", False), (None, False)):
            news = ChannelTester(NewsChannel, user=self.carol, params={"topic": topic} if topic is not None else {})
            self.assertEqual(news.subscribe(), confirmed, topic)


@cheap_passwords
class RemovedMembersTest(CableTestCase):
    """Tests that subscriptions end when their user may no longer enter the room."""

    def setUp(self) -> None:
        create_demo_data()
        self.bob = User.objects.get(username="bob")

    async def test_a_user_who_is_removed(self) -> None:
        room = await Room.objects.aget(slug="alice-and-bob")
        await self.check_that_bob_is_excluded_by(room, database_sync_to_async(room.members.remove)(self.bob))

    async def test_a_room_that_becomes_private_is_closed_to_others(self) -> None:
        room = await Room.objects.aget(slug="lobby")
        room.is_private = True
        await self.check_that_bob_is_excluded_by(room, room.asave())

    async def check_that_bob_is_excluded_by(self, room: Room, change: Awaitable[None]) -> None:
        """Subscribe bob to a room, make a change, and check that he is unsubscribed and cannot subscribe again."""
        async with CableCommunicator(user=self.bob) as page:
            chat = await page.subscribe(ChatChannel, {"room_id": room.pk})
            await change
            self.assertEqual((await chat.receive()).get("type"), "revoked")
            await page.reconnect()
            self.assertFalse(chat.confirmed)


@cheap_passwords
class MessagesTest(CableTestCase):
    """Tests of messages in rooms, and of their broadcasts."""

    def setUp(self) -> None:
        create_demo_data()
        self.alice = User.objects.get(username="alice")
        self.lobby = Room.objects.get(slug="lobby")
        self.stream = ChatChannel.broadcasting_for(self.lobby)
        self.room = ChannelTester(ChatChannel, user=self.alice, params={"room_id": self.lobby.pk})

    def test_a_message_is_saved_and_broadcast(self) -> None:
        self.room.subscribe()
        with self.assertBroadcasts(self.stream, 1, matching={"text": "Hello", "author": "alice"}) as broadcasts:
            self.room.perform("speak", {"text": " Hello ", "client_id": "1"})
        message = Message.objects.get()
        self.assertEqual((message.text, message.author), ("Hello", self.alice))
        self.assertEqual(broadcasts[0].data["id"], message.pk)

    def test_a_message_that_is_sent_again_is_broadcast_once(self) -> None:
        with self.assertBroadcasts(self.stream, 1):
            first, second = (post_message(self.lobby, self.alice, "Hello", "1") for _ in range(2))
        self.assertEqual(first, second)

    def test_an_invalid_message_is_refused(self) -> None:
        self.room.subscribe()
        with self.assertNoBroadcasts():
            for data in ({}, {"text": " ", "client_id": "1"}, {"text": "Hi"}, {"text": "x" * 2001, "client_id": "1"}):
                self.room.perform("speak", data)
        self.assertEqual([message["type"] for message in self.room.transmissions], ["refused"] * 4)
        self.assertFalse(Message.objects.exists())

    def test_the_robot_sends_numbered_lines(self) -> None:
        with self.assertBroadcasts(self.stream, 3) as broadcasts:
            talk(self.lobby.pk, 3)
        self.assertEqual([each.data["text"] for each in broadcasts], [f"Line {number} of 3" for number in (1, 2, 3)])

    def test_each_box_has_a_stream_of_its_own(self) -> None:
        self.client.force_login(self.alice)
        with self.assertBroadcasts("news:signed", 1, matching={"text": "Hello from alice"}):
            with self.assertNoBroadcasts("news:public"):
                self.assertEqual(self.client.post("/migrations/signed/broadcast/").status_code, 204)
        with self.assertBroadcasts("news:signed", 1), self.assertBroadcasts("news:public", 1):
            self.client.post("/migrations/all/broadcast/")
        self.assertEqual(self.client.post("/migrations/nothing/broadcast/").status_code, 404)
