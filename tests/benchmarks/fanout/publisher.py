"""Another process that broadcasts, as a view or a task elsewhere does: through Redis, and none of the server's CPU."""

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
    """Return records that are about so many bytes of JSON, in which a compressor finds what it finds in others."""
    chance = random.Random(seed)
    made: list[dict[str, Any]] = []
    left = size - 1
    while left > 0:
        text = " ".join(chance.choices(WORDS, k=9))
        made.append({"id": chance.randrange(10**6), "user": chance.choice(WORDS), "text": text})
        left -= len(json.dumps(made[-1], separators=(",", ":"))) + 1
    made[-1]["text"] = text[: left or None]
    return made


def publish(messages: int, first: int, rate: float, streams: int, size: int, prefix: str = "bench") -> dict[str, Any]:
    """Broadcast: message number n to stream n modulo `streams`; `rate` a second, or one after the other."""
    started = time.monotonic()
    for count, number in enumerate(range(first, first + messages), 1):
        broadcast(f"{prefix}{number % streams}", {"n": number, "ts": time.time_ns(), "pad": records(number, size)})
        if rate:
            time.sleep(max(0.0, started + count / rate - time.monotonic()))
    return {"seconds": time.monotonic() - started}


def sign_in() -> dict[str, Any]:
    """Return the `Cookie` header of a user who is logged in."""
    user, _ = get_user_model().objects.get_or_create(username="bench")
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session["_auth_user_backend"] = "django.contrib.auth.backends.ModelBackend"
    session["_auth_user_hash"] = user.get_session_auth_hash()
    session.save()
    return {"cookie": f"sessionid={session.session_key}"}


def main() -> None:
    """Take commands, one a line."""
    broadcast("nobody", {})  # opens the connection to Redis, which is no message's delay
    actions: dict[str, Callable[..., dict[str, Any]]] = {"publish": publish, "sign_in": sign_in}
    for line in sys.stdin:
        command = json.loads(line)
        answer = actions[command.pop("do")](**command)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
