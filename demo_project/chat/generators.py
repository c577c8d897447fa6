"""Classes that write the assistant's answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Protocol

from django.conf import settings
from django.utils.module_loading import import_string


class GeneratorError(Exception):
    """Raised by a generator if it cannot write or complete the answer. The message is shown to the user."""


class Generator(Protocol):
    """Writes an answer piece by piece, for example by yielding the pieces that a language model streams."""

    def generate(self, prompt: str) -> AsyncIterator[str]:
        """Yield the pieces of the answer.

        Raises:
            GeneratorError: the answer cannot be completed. The pieces that were yielded before are kept.
        """
        ...


def get_generator() -> Generator:
    """Return an instance of the class that `DEMO_GENERATOR` names."""
    generator: Generator = import_string(settings.DEMO_GENERATOR)()
    return generator


class ScriptedGenerator:
    """A generator that answers with prepared paragraphs, without a language model.

    Each time, it gives the same answer to the same prompt.
    """

    PARAGRAPHS = (
        (
            r"offset|number|position",
            "Every message of a stream has a number, its offset. The first one has 1, and there are no holes. A page "
            "remembers the last number it saw, so after a break it can say exactly where it stopped, and the server "
            "can tell whether something is missing.",
        ),
        (
            r"epoch|restart",
            "An epoch names one life of a stream's numbering. If the numbering ever had to begin again, the epoch "
            "changes with it, and a position from the old epoch is never mistaken for one of the new.",
        ),
        (
            r"cut|lost|lose|reconnect|offline|train",
            "When a connection breaks, nothing is lost, because the stream keeps its messages. The page reconnects, "
            "names its session and its positions, and is sent what it missed, in order, before anything new. You can "
            "try it now: cut the connection while this answer is being written.",
        ),
        (
            r"presence|who|member",
            "Presence is kept by expiry. Each connection renews its members every few seconds; a member that is not "
            "renewed leaves, with one event, even if the server that held the connection was killed.",
        ),
        (
            r"token|stream|answer|model|llm",
            "This answer is written by a task that belongs to no connection. It broadcasts each piece to your own "
            "stream and saves the whole at its end. Your page may come and go meanwhile; it catches up by position.",
        ),
    )
    GENERAL = (
        "Hello! I am a small scripted assistant: I know a few things about reliable streams, and I repeat them "
        "patiently. Ask me about offsets, epochs, lost connections, presence, or how this answer reaches you."
    )
    CLOSING = "That is all I know about it. Ask me something else, or the same again: I never grow tired."
    FAILING = "This one goes well for a while, and then, as real models do at times, it"

    async def generate(self, prompt: str) -> AsyncIterator[str]:
        """Yield an answer word by word, `DEMO_TOKEN_DELAY` seconds apart. A prompt with "fail" causes an error."""
        fails = re.search(r"\bfail", prompt, re.IGNORECASE) is not None
        text = self.FAILING if fails else self._text(prompt)
        for token in re.findall(r"\S+\s*", text):
            await asyncio.sleep(settings.DEMO_TOKEN_DELAY)
            yield token
        if fails:
            raise GeneratorError("The model is not available; please try again.")

    def _text(self, prompt: str) -> str:
        found = [text for pattern, text in self.PARAGRAPHS if re.search(pattern, prompt, re.IGNORECASE)]
        return "\n\n".join([*(found or [self.GENERAL]), self.CLOSING])
