"""A robot that sends messages. A page that is offline at that time receives them after it has reconnected."""

from __future__ import annotations

import time
import uuid

from .cable import post_message
from .models import Room

#: The maximum number of messages that a page can make the robot send at once.
MAX_LINES = 500


def talk(room_id: int, count: int, interval: float = 0.0) -> None:
    """Send numbered messages to a room.

    Args:
        room_id: the primary key of the room.
        count: the number of messages.
        interval: how long, in seconds, to wait between two messages.
    """
    room = Room.objects.get(pk=room_id)
    run = uuid.uuid4().hex
    for number in range(1, count + 1):
        post_message(room, None, f"Line {number} of {count}", f"{run}-{number}")
        if interval and number < count:
            time.sleep(interval)
