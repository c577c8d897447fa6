"""A reader of a run, which computes the answer from the events, as clients do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from reliable_cable.runs import events
from reliable_cable.runs.models import Status

#: The events that end an attempt, with the status of the run after each.
ENDED = {events.COMPLETE: Status.COMPLETED, events.STOPPED: Status.STOPPED, events.ERROR: Status.FAILED}


class RunReader:
    """The state of a run, as a reader computes it from the events.

    Attributes:
        attempt: the number of the newest attempt.
        text: the text of that attempt so far.
        parts: the other parts of that attempt so far.
        status: the status of that attempt, from a snapshot or an event.
        names: the names of all events, in their order.
    """

    def __init__(self) -> None:
        self.attempt = 0
        self.text = ""
        self.parts: list[dict[str, Any]] = []
        self.status = ""
        self.names: list[str] = []

    @property
    def ended(self) -> bool:
        """Whether the newest attempt was completed, was stopped or has failed."""
        return self.status not in ("", "queued", "running")

    async def read(
        self, receive: Callable[[], Awaitable[Any]], until: Callable[[RunReader], object], patience: float = 30
    ) -> None:
        """Read frames until a condition is true.

        Args:
            receive: returns the next frame.
            until: the condition.
            patience: how long to wait, in seconds.
        """
        async with asyncio.timeout(patience):
            while not until(self):
                frame = await receive()
                if isinstance(frame.get("message"), dict):
                    self.add(frame["message"])

    def add(self, event: dict[str, Any]) -> None:
        """Update the attributes of this reader with an event of the run."""
        name = event["event"]
        self.names.append(name)
        if name == events.SNAPSHOT:
            self.attempt, self.status = event["attempt"], event["status"]
            self.text, self.parts = event["content"], event["parts"]
            return
        if event["attempt"] > self.attempt:
            self.attempt, self.status = event["attempt"], "running"
            self.text, self.parts = "", []
        elif event["attempt"] < self.attempt or self.ended:
            return
        if name == events.START:
            self.status = "running"
        elif name == events.CHUNK:
            self.text += event["content"]
        elif name == events.PART:
            self._add_part({**event["part"], "at": len(self.text)})
        elif name in ENDED:
            self.status = ENDED[name]

    def _add_part(self, part: dict[str, Any]) -> None:
        last = self.parts[-1] if self.parts else {}
        if part["type"] == "reasoning" == last.get("type") and last["at"] == part["at"]:
            self.parts = [*self.parts[:-1], {**last, "text": last["text"] + part["text"]}]
        else:
            self.parts = [*self.parts, part]
