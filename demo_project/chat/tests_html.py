"""Tests of the room pages with Turbo and htmx, to which messages are broadcast as HTML."""

# ruff: noqa: PT009 - these tests are written for Django's test runner, not for pytest

from __future__ import annotations

from django.contrib.auth.models import User

from reliable_cable.testing import CableTestCase

from .accounts import create_demo_data
from .cable import post_message
from .models import Message, Room
from .tests import cheap_passwords


@cheap_passwords
class HtmlRoomsTest(CableTestCase):
    """Tests of the views of pages with Turbo and htmx, and of the broadcasts to them."""

    def setUp(self) -> None:
        create_demo_data()
        self.alice = User.objects.get(username="alice")
        self.lobby = Room.objects.get(slug="lobby")
        self.client.force_login(self.alice)

    def test_pages_with_signed_names_exist_for_public_rooms_only(self) -> None:
        self.assertContains(self.client.get("/rooms/lobby/"), "/rooms/lobby/turbo/")
        self.assertNotContains(self.client.get("/rooms/alice-and-bob/"), "turbo/")
        for path in ("turbo", "htmx", "htmx4"):
            self.assertEqual(self.client.get(f"/rooms/alice-and-bob/{path}/").status_code, 404)

    def test_an_invalid_message_of_a_form_is_refused(self) -> None:
        for text in ("", "  ", "x" * 2001):
            self.assertEqual(self.client.post("/rooms/lobby/say/", {"text": text}).status_code, 400)
        self.assertFalse(Message.objects.exists())

    def test_a_message_is_broadcast_as_html_to_pages_of_public_rooms(self) -> None:
        with self.assertBroadcasts(f"chat.room:{self.lobby.pk}:turbo", 1) as turbo:
            with self.assertBroadcasts(f"chat.room:{self.lobby.pk}:htmx", 2) as htmx:
                self.assertEqual(self.client.post("/rooms/lobby/say/", {"text": "<hi>"}).status_code, 204)
        self.assertIn("&lt;hi&gt;", turbo[0].data)
        self.assertIn("&lt;hi&gt;", htmx[0].data)
        self.assertEqual(htmx[1].data, {"$event": "count", "data": "1 message\n"})
        private = Room.objects.get(slug="alice-and-bob")
        with self.assertNoBroadcasts(f"chat.room:{private.pk}:turbo"):
            post_message(private, self.alice, "Hello", "1")
