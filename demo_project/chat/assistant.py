"""The assistant: starts answers, and writes them in the background. Each answer is a run of `reliable_cable.runs`."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from django.db import transaction

from reliable_cable import broadcast
from reliable_cable.runs.exceptions import RunFailed
from reliable_cable.runs.models import Run
from reliable_cable.runs.writing import writing

from . import background
from .models import Conversation
from .scripted import words_of_answer


def stream_of(conversation: Conversation) -> str:
    """Return the name of the stream on which new runs of a conversation are announced to its pages."""
    return f"assistant:{conversation.pk}"


@transaction.atomic
def ask(conversation: Conversation, prompt: str, again: str | None = None) -> bool:
    """Start an answer. Return False if another answer of the conversation has not ended.

    Args:
        conversation: the conversation.
        prompt: the user's question.
        again: the id of an ended run, to start another attempt of it; None: start a new run.
    """
    conversation = Conversation.objects.select_for_update().get(pk=conversation.pk)
    if Run.objects.about(conversation).active().exists():
        return False
    if again is None:
        run = Run.objects.start(owner=conversation.user, subject=conversation, input={"prompt": prompt})
        conversation.title = conversation.title or prompt[: Conversation.MAX_TITLE]
        conversation.save()
    else:
        run = Run.objects.retry(again)
    broadcast(stream_of(conversation), {"run": str(run.pk), "prompt": prompt, "title": conversation.title})
    transaction.on_commit(partial(background.start, write, str(run.pk)))
    return True


def write(run: str) -> None:
    """Write the answer of a run."""
    with suppress(RunFailed), writing(run) as out:  # `writing` reports the failure to the readers
        out.write_all(words_of_answer(out.run.input["prompt"]))
