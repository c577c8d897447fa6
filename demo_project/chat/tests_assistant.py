"""Tests of the assistant: its conversations, and starting and writing its answers."""

# ruff: noqa: PT009 - these tests are written for Django's test runner, not for pytest

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from django.contrib.auth.models import User
from django.test import TransactionTestCase, override_settings

from reliable_cable import position
from reliable_cable.runs.models import Run, Status
from reliable_cable.testing import CableTestCase, CableTestMixin, ChannelTester

from . import assistant, background
from .accounts import create_demo_data
from .cable import AssistantChannel
from .models import Conversation
from .scripted import FAILING, words_of_answer
from .tests import cheap_passwords


@cheap_passwords
class ConversationsTest(CableTestCase):
    """Tests of the page, of the rights of users, and of starting answers."""

    def setUp(self) -> None:
        create_demo_data()
        self.carol, self.bob = (User.objects.get(username=name) for name in ("carol", "bob"))
        self.client.force_login(self.carol)
        self.conversation = Conversation.objects.create(user=self.carol, title="What is an offset?")
        patcher = patch.object(background, "start")
        self.started = patcher.start()
        self.addCleanup(patcher.stop)

    def page(self, user: User | None = None, conversation: Any = None) -> ChannelTester:
        """Return a test client for a user and a conversation: by default, carol and her conversation."""
        params = {"conversation": self.conversation.pk if conversation is None else conversation}
        return ChannelTester(AssistantChannel, user=user or self.carol, params=params)

    def ask(self, action: str, **data: Any) -> Any:
        """Call an action in carol's conversation. Return the reason for a refusal, or ""."""
        page = self.page()
        self.assertTrue(page.subscribe())
        with self.captureOnCommitCallbacks(execute=True):
            return page.perform(action, data)

    def test_the_page_shows_the_latest_conversation(self) -> None:
        self.assertContains(self.client.get("/assistant/"), f'data-conversation="{self.conversation.pk}"')
        self.client.force_login(self.bob)
        self.assertNotContains(self.client.get("/assistant/"), f"/assistant/{self.conversation.pk}/")
        self.assertEqual(self.bob.conversations.count(), 1)

    def test_a_new_conversation(self) -> None:
        first, second = (self.client.post("/assistant/") for _ in range(2))
        new = self.carol.conversations.latest("pk")
        self.assertNotEqual(new, self.conversation)
        self.assertRedirects(first, f"/assistant/{new.pk}/")
        self.assertRedirects(second, f"/assistant/{new.pk}/")

    def test_a_conversation_is_hidden_from_other_users(self) -> None:
        self.client.force_login(self.bob)
        self.assertEqual(self.client.get(f"/assistant/{self.conversation.pk}/").status_code, 404)
        for user, pk in ((self.bob, None), (self.carol, 10**6), (self.carol, "1")):
            with self.subTest(f"{user} {pk}"):
                self.assertFalse(self.page(user, pk).subscribe())

    def test_the_page_shows_ended_answers_and_follows_the_others(self) -> None:
        for status, text in ((Status.COMPLETED, "<b>Done</b>"), (Status.RUNNING, "Not shown")):
            run = Run.objects.start(owner=self.carol, subject=self.conversation, input={"prompt": f"Is it {status}?"})
            Run.objects.filter(pk=run.pk).update(status=status, text=text)
        page = self.client.get(f"/assistant/{self.conversation.pk}/")
        self.assertContains(page, "&lt;b&gt;Done&lt;/b&gt;")
        self.assertContains(page, "Is it running?")
        self.assertContains(page, 'data-state="running"')
        self.assertNotContains(page, "Not shown")
        self.assertContains(page, f'data-after="{position(assistant.stream_of(self.conversation))}"')

    def test_a_question_starts_a_run(self) -> None:
        conversation = self.conversation = Conversation.objects.create(user=self.carol)
        stream = assistant.stream_of(conversation)
        with self.assertBroadcasts(stream, 1) as broadcasts:
            self.assertEqual(self.ask("ask", prompt=" Why? "), "")
        run = Run.objects.about(conversation).get()
        self.assertEqual((run.owner, run.input, run.status), (self.carol, {"prompt": "Why?"}, Status.QUEUED))
        self.assertEqual(broadcasts[0].data, {"run": str(run.pk), "prompt": "Why?", "title": "Why?"})
        self.started.assert_called_once_with(assistant.write, str(run.pk))
        conversation.refresh_from_db()
        self.assertEqual(str(conversation), "Why?")

    def test_one_answer_at_a_time_in_each_conversation(self) -> None:
        self.assertEqual(self.ask("ask", prompt="Why?"), "")
        self.assertIn("One answer at a time", self.ask("ask", prompt="And why?"))
        self.conversation = Conversation.objects.create(user=self.carol)
        self.assertEqual(self.ask("ask", prompt="And why?"), "")

    def test_an_invalid_prompt_is_refused(self) -> None:
        for prompt in ("", "  ", "x" * 1001):
            self.assertIn("1 to 1000 characters", self.ask("ask", prompt=prompt))
        self.assertFalse(Run.objects.exists())

    def test_an_answer_that_failed_can_be_tried_again(self) -> None:
        self.ask("ask", prompt="Why?")
        run = Run.objects.get()
        self.assertIn("cannot be tried again", self.ask("retry", run=str(run.pk)), "it has not ended")
        run.stop()
        self.assertEqual(self.ask("retry", run=str(run.pk)), "")
        run.refresh_from_db()
        self.assertEqual((run.status, run.attempt), (Status.QUEUED, 2))
        self.assertEqual(self.started.call_count, 2)

    def test_an_answer_of_another_conversation_cannot_be_tried_again(self) -> None:
        other = Conversation.objects.create(user=self.bob)
        run = Run.objects.start(owner=self.bob, subject=other, input={"prompt": "Why?"})
        run.stop()
        for pk in (str(run.pk), "no id", None):
            self.assertIn("cannot be tried again", self.ask("retry", run=pk))


@override_settings(DEMO_TOKEN_DELAY=0)
class AnswersTest(CableTestMixin, TransactionTestCase):
    """Tests of writing answers. They need committed rows, because a thread saves the answers."""

    def write(self, prompt: str) -> Run:
        """Write the answer to a prompt, and return the run."""
        run = Run.objects.start(input={"prompt": prompt})
        assistant.write(str(run.pk))
        run.refresh_from_db()
        return run

    def test_the_same_prompt_has_the_same_answer(self) -> None:
        first, second = (self.write("What is an offset?") for _ in range(2))
        self.assertEqual((first.status, first.text), (Status.COMPLETED, second.text))
        self.assertIn("**offset**", first.text)
        self.assertEqual(first.text, "".join(words_of_answer("What is an offset?")))

    def test_an_answer_that_fails_keeps_its_beginning(self) -> None:
        run = self.write("Please fail")
        self.assertEqual((run.status, run.text), (Status.FAILED, FAILING))
        self.assertIn("not available", run.error)

    def test_a_run_that_was_stopped_before_it_began(self) -> None:
        run = Run.objects.start(input={"prompt": "Why?"})
        run.stop()
        assistant.write(str(run.pk))
        run.refresh_from_db()
        self.assertEqual((run.status, run.text), (Status.STOPPED, ""))
