"""Functions that start runs and write them, in a Celery task or in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db import models, transaction

from reliable_cable.runs.access import RunPermissions
from reliable_cable.runs.chats import ChatMessage, RunChats
from reliable_cable.runs.exceptions import RunFailed
from reliable_cable.runs.http.ag_ui import ag_ui_messages
from reliable_cable.runs.http.ui_messages import ui_message
from reliable_cable.runs.models import Run
from reliable_cable.runs.writing import Writer, writing


class Everyone(RunPermissions):
    """Lets everyone read and stop every run, because the clients of the tests are anonymous."""

    def may_read(self, user: Any, run: Run) -> bool:
        """Allow each user to read each run."""
        return True


class Chats(RunChats):
    """Chats that are groups of Django. The name of a chat begins with the name of its only user, and a dash."""

    def subject(self, user: Any, chat: str) -> models.Model:
        """Return the group with the name of the chat, if the chat belongs to the user."""
        if chat.partition("-")[0] != user.get_username():
            raise PermissionDenied
        return Group.objects.get(name=chat)

    def start(self, user: Any, subject: models.Model, message: ChatMessage) -> Run:
        """Start a run. If the message is "say …" or "fail after …", a Celery task writes the words that follow.

        After these words, "fail after …" makes the task fail. Other messages start no task: `open_run` begins to write
        the answer.
        """
        fails = message.text.startswith("fail after ")
        words = message.text.removeprefix("fail after ").split() if fails else []
        if message.text.startswith("say "):
            words = message.text.split()[1:]
        question = {"id": message.id, "text": message.text}
        words = [f"{word} " for word in words]
        run = Run.objects.start(
            owner=user,
            subject=subject,
            input={"words": words, "pause": 0.05, "question": question, "fails": fails},
        )
        if words:
            transaction.on_commit(lambda: _enqueue(str(run.pk)))
        return run


def make_chat(chat: str) -> None:
    """Create a chat."""
    Group.objects.create(name=chat)


def messages_of(chat: str) -> list[dict[str, Any]]:
    """Return the messages of a chat as the AI SDK defines them. An answer is left out until its run has ended."""
    messages: list[dict[str, Any]] = []
    for run in Run.objects.about(Group.objects.get(name=chat)).order_by("created_at"):
        question = run.input["question"]
        parts = [{"type": "text", "text": question["text"]}]
        messages.append({"id": question["id"], "role": "user", "parts": parts})
        if run.ended:
            messages.append(ui_message(run))
    return messages


def ag_ui_messages_of(chat: str) -> list[dict[str, Any]]:
    """Return the messages of a chat as AG-UI defines them."""
    messages: list[dict[str, Any]] = []
    for run in Run.objects.about(Group.objects.get(name=chat)).order_by("created_at"):
        question = run.input["question"]
        messages.append({"id": question["id"], "role": "user", "content": question["text"]})
        messages += ag_ui_messages(run)
    return messages


#: The writers of the runs that this process writes, by the id of the run.
_open: dict[str, tuple[ExitStack, Writer]] = {}


def open_run(chat: str) -> str:
    """Begin to write the newest queued run of a chat in this process. Return its id, or "" if there is none."""
    run = Run.objects.about(Group.objects.get(name=chat)).filter(status="queued").order_by("created_at").last()
    if run is None:
        return ""
    stack = ExitStack()
    _open[str(run.pk)] = stack, stack.enter_context(writing(run.pk))
    return str(run.pk)


def write_to_run(run: str, text: str) -> None:
    """Write a text to a run that `open_run` has returned."""
    _open[run][1].write(text)


def close_run(run: str) -> None:
    """End a run that `open_run` has returned. Unless it was stopped, first add a source and a count of tokens."""
    stack, writer = _open.pop(run)
    if not writer.stopped:
        writer.source("https://example.com/", "Example")
        writer.count({"output_tokens": 3})
    stack.close()


def write(run: str) -> None:
    """Write a part with the id of this process, then each word of the run's input.

    If the input asks for a failure, the run fails after the last word.
    """
    with writing(run) as out:
        out.data("pid", os.getpid())
        for word in out.run.input["words"]:
            out.write(word)
            time.sleep(out.run.input["pause"])
        if out.run.input.get("fails"):
            raise RunFailed("The words have run out.")


def start_run(words: list[str], pause: float) -> str:
    """Start a run, and enqueue its task after the commit. Return its id."""
    with transaction.atomic():
        run = Run.objects.start(input={"words": words, "pause": pause})
        transaction.on_commit(lambda: _enqueue(str(run.pk)))
    return str(run.pk)


def start_chat_run(user: str, chat: str) -> str:
    """Create a chat if it does not exist, and a queued run that belongs to it. Return the id of the run."""
    group, _ = Group.objects.get_or_create(name=chat)
    return str(Run.objects.start(owner=get_user_model().objects.get(username=user), subject=group).pk)


def run_rows(runs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the statuses and attempts of runs, by their ids. If a run has ended, its answer is included."""
    rows = {str(run.pk): run for run in Run.objects.filter(pk__in=runs).defer("text", "parts", "input")}
    answers = {
        str(run["pk"]): run
        for run in Run.objects.filter(pk__in=[run.pk for run in rows.values() if run.ended]).values(
            "pk", "status", "attempt", "text", "parts", "error"
        )
    }
    return {
        key: {name: value for name, value in answers[key].items() if name != "pk"}
        if key in answers
        else {"status": run.status, "attempt": run.attempt}
        for key, run in rows.items()
    }


def stop_run(run: str) -> bool:
    """Stop a run. Return False if it had already ended."""
    return Run.objects.get(pk=run).stop()


def expire_runs() -> int:
    """Fail the runs whose writer has died. Return their number."""
    return len(Run.objects.expire())


def retry_run(run: str) -> None:
    """Start another attempt of a run that has ended."""
    Run.objects.retry(run)
    _enqueue(run)


def read_run(run: str) -> dict[str, Any]:
    """Return the status, text, attempt and error of a run."""
    return dict(Run.objects.filter(pk=run).values("status", "text", "attempt", "error").get())


def _enqueue(run: str) -> None:
    from tests.integration.project.celery import app  # imported late, because most processes need no Celery

    app.send_task("tests.integration.project.tasks.write_run", [run])
