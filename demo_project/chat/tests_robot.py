"""Tests of the command `robot`."""

# ruff: noqa: PT009, PT027 - these tests are written for Django's test runner, not for pytest

from __future__ import annotations

from django.core.management import CommandError, call_command
from django.test import TransactionTestCase

from reliable_cable.testing import CableTestMixin

from .cable import ChatChannel
from .models import Room


class RobotCommandTest(CableTestMixin, TransactionTestCase):
    """Tests that need committed rows, because the command uses another database connection in its event loop."""

    def test_rooms_are_found_by_slug(self) -> None:
        lobby = Room.objects.create(slug="lobby", name="Lobby")
        with self.assertBroadcasts(ChatChannel.broadcasting_for(lobby), 2):
            call_command("robot", "lobby", "--count", "2")
        self.assertEqual(lobby.messages.count(), 2)
        with self.assertRaises(CommandError):
            call_command("robot", "nowhere")
