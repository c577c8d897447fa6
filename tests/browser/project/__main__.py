"""Another process with the database of the server. It reads calls as lines of JSON, and writes their results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import django


def main() -> None:
    """Make the calls until the input ends."""
    django.setup()
    from demo_project.chat.cable import post_message
    from demo_project.chat.models import Message, Room
    from reliable_cable.runs.models import Run

    def make_room(slug: str) -> None:
        Room.objects.create(slug=slug, name=slug.title())

    def room_id(slug: str) -> int:
        return int(Room.objects.get(slug=slug).pk)

    def post(slug: str, text: str) -> None:
        post_message(Room.objects.get(slug=slug), None, text, client_id=text)

    def messages(slug: str) -> list[str]:
        return list(Message.objects.filter(room__slug=slug).values_list("text", flat=True))

    def answer(run: str) -> dict[str, Any]:
        return dict(Run.objects.values("status", "text", "error", "attempt").get(pk=run))

    calls: Mapping[str, Callable[..., Any]] = {
        "make_room": make_room,
        "room_id": room_id,
        "post": post,
        "messages": messages,
        "answer": answer,
    }
    for line in sys.stdin:
        name, arguments = json.loads(line)
        sys.stdout.write(json.dumps(calls[name](*arguments)) + "\n")
        sys.stdout.flush()


main()
