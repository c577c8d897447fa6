"""The rows of runs at the end of each attempt, and the answers that readers have read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reliable_cable.runs.http.ag_ui import AgUiEvents, build_messages
from reliable_cable.runs.http.ui_messages import UiMessages, build_message

Parts = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer at the end of an attempt, as it is in the database."""

    attempt: int
    status: str
    text: str
    parts: Parts = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer that a reader has read to its end.

    Args:
        reader: the kind of the reader.
        answer: what the reader has, in the form that the function for this kind returns, such as `as_channel`.
    """

    reader: str
    answer: Any


@dataclass(slots=True, eq=False)
class RunTruth:
    """The facts about one run that a storm has recorded.

    Args:
        run: the id of the run.
        chat: the id of its chat.
    """

    run: str
    chat: str
    #: The rows at the ends of attempts, by the number of the attempt.
    answers: dict[int, Answer] = field(default_factory=dict)
    #: The row at the end of the last attempt.
    final: Answer | None = None
    #: The answers that readers have read to the end.
    seen: list[Seen] = field(default_factory=list)
    #: Set when the last attempt has ended. Readers then stay until they have read the answer to its end.
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self) -> None:
        """Record that the newest attempt was the last one."""
        self.final = self.answers[max(self.answers)]
        self.closing.set()


def snapshot_of(answer: Answer) -> dict[str, Any]:
    """Return the event `snapshot` by which a reader of a run receives an answer."""
    return {
        "event": "snapshot",
        "attempt": answer.attempt,
        "status": answer.status,
        "content": answer.text,
        "parts": answer.parts,
        "usage": {},
        "error": answer.error,
    }


def as_ui_message(run: str, answer: Answer) -> Any:
    """Convert an answer to the form in which `UiReader` records it: the status and the message of the AI SDK."""
    translator = UiMessages(run)
    message = build_message([*translator.start(), *translator.translate(snapshot_of(answer))])
    return [answer.status, message]


def as_agent_messages(run: str, answer: Answer) -> Any:
    """Convert an answer to the form in which `AgentReader` records it: the status and the messages of an agent."""
    return [answer.status, build_messages(AgUiEvents(run, "").translate(snapshot_of(answer)))]


def as_followed(answer: Answer) -> Any:
    """Convert an answer to the form in which `FollowingReader` records it. Indexes count UTF-16 code units."""
    parts = [{**part, "at": len(answer.text[: part["at"]].encode("utf-16-le")) // 2} for part in answer.parts]
    return [answer.status, answer.error, answer.text, parts]


def as_channel(answer: Answer) -> Any:
    """Convert an answer to the form in which `ChannelReader` records it."""
    return [answer.attempt, answer.status, answer.text, list(answer.parts)]
