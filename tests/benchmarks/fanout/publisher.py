"""A process that broadcasts through Redis, like a view or a task in another process than the server."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import django

django.setup()

from django.contrib.auth import SESSION_KEY, get_user_model  # noqa: E402 - needs the apps
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402

from reliable_cable import broadcast  # noqa: E402

WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many"
).split()


def records(seed: int, size: int) -> list[dict[str, Any]]:
    """Return records whose JSON has about `size` bytes, and is about as compressible as that of a usual application."""
    rng = random.Random(seed)
    result: list[dict[str, Any]] = []
    remaining = size - 1
    while remaining > 0:
        text = " ".join(rng.choices(WORDS, k=9))
        result.append({"id": rng.randrange(10**6), "user": rng.choice(WORDS), "text": text})
        remaining -= len(json.dumps(result[-1], separators=(",", ":"))) + 1
    result[-1]["text"] = text[: remaining or None]
    return result


def publish(messages: int, first: int, rate: float, streams: int, size: int, prefix: str = "bench") -> dict[str, Any]:
    """Broadcast messages. Message number n goes to the stream with the number n modulo `streams`.

    Args:
        messages: the number of messages.
        first: the number of the first message.
        rate: broadcasts per second; 0: as many as possible.
        streams: the number of streams.
        size: bytes of JSON in each message.
        prefix: the beginning of the names of streams.
    """
    started = time.monotonic()
    for count, number in enumerate(range(first, first + messages), 1):
        broadcast(f"{prefix}{number % streams}", {"n": number, "ts": time.time_ns(), "pad": records(number, size)})
        if rate:
            time.sleep(max(0.0, started + count / rate - time.monotonic()))
    return {"seconds": time.monotonic() - started}


def sign_in() -> dict[str, Any]:
    """Log a user in, and return the header `Cookie` of the session."""
    user, _ = get_user_model().objects.get_or_create(username="bench")
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session["_auth_user_backend"] = "django.contrib.auth.backends.ModelBackend"
    session["_auth_user_hash"] = user.get_session_auth_hash()
    session.save()
    return {"cookie": f"sessionid={session.session_key}"}


def main() -> None:
    """Execute the commands on the standard input, one per line."""
    broadcast("nobody", {})  # connects to Redis now, so that this delays no measured message
    actions: dict[str, Callable[..., dict[str, Any]]] = {"publish": publish, "sign_in": sign_in}
    for line in sys.stdin:
        command = json.loads(line)
        answer = actions[command.pop("do")](**command)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
