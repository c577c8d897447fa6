"""Another process that broadcasts, as a view or a task elsewhere does: through Redis, and none of the server's CPU."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import django

django.setup()

from django.contrib.auth import SESSION_KEY, get_user_model  # noqa: E402 - needs the apps
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402

from reliable_cable import broadcast  # noqa: E402


def publish(messages: int, first: int, rate: float, streams: int, size: int, prefix: str = "bench") -> dict[str, Any]:
    """Broadcast: message number n to stream n modulo `streams`; `rate` a second, or one after the other."""
    pad = "x" * size
    started = time.monotonic()
    for count, number in enumerate(range(first, first + messages), 1):
        broadcast(f"{prefix}{number % streams}", {"n": number, "ts": time.time_ns(), "pad": pad})
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
