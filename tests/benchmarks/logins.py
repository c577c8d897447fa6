"""Measures what the checks of Django logins cost a server, for each session engine, with users in SQLite."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import process_time
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.core.management import call_command

from reliable_cable.concurrency.threads import end_threads, run_handler
from reliable_cable.hub.login_checks import BATCH_SIZE, ROUNDS, LoginChecks
from reliable_cable.logins import Login, find_login
from reliable_cable.protocol.constants import DisconnectReason

T = TypeVar("T")

CONNECTIONS = 1000
ENGINES = ("db", "cached_db", "cache", "file", "signed_cookies")
#: How often, in seconds, each login is checked. One interval is measured, including its rounds in which no login is
#: due.
INTERVAL = 5.0


class _Connection:
    def __init__(self, login: Login) -> None:
        self.login = login
        self.namespace = ""

    async def run_isolated(self, call: Callable[[], T]) -> T:
        return await run_handler(call)

    def close(self, reason: DisconnectReason, *, reconnect: bool | None = None) -> None:
        raise AssertionError("a valid login was taken for an invalid one")


def run(folder: Path) -> int:
    """Print the CPU time for each engine and the memory for each connection, and return the exit code."""
    databases: Any = settings.DATABASES
    databases["default"]["NAME"] = str(folder / "db.sqlite3")
    settings.SESSION_FILE_PATH = str(folder)
    settings.CACHES["default"]["OPTIONS"] = {"MAX_ENTRIES": 10 * CONNECTIONS}
    call_command("migrate", verbosity=0)
    model: Any = get_user_model()
    users = model.objects.bulk_create(model(username=str(number), password="x") for number in range(CONNECTIONS))
    sys.stdout.write(f"{CONNECTIONS} connections, batches of {BATCH_SIZE}, {ROUNDS} rounds in an interval\n")
    for engine in ENGINES:
        settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
        sessions = [_session(user) for user in users]
        logins = [login for session in sessions if (login := find_login({"session": session}))]
        cpu, checked = asyncio.run(_measure(logins))
        sys.stdout.write(f"{engine:16} {cpu / checked * CONNECTIONS * 1000:6.1f} ms of CPU in each interval\n")
    tracemalloc.start()
    copies = [find_login({"session": session}) for session in sessions]
    size = tracemalloc.get_traced_memory()[0] / len(copies)
    tracemalloc.stop()
    sys.stdout.write(f"{size:.0f} bytes for the login of a connection\n")
    return 0


def _session(user: Any) -> Any:
    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    return session


async def _measure(logins: list[Login]) -> tuple[float, int]:
    """Return the CPU time of an interval in seconds, and how many logins were checked in it."""
    checks = LoginChecks(INTERVAL)
    for login in logins:
        checks.add(_Connection(login))
    # First, each login is checked once, and the database is opened.
    await asyncio.sleep(INTERVAL)
    due = {login: login.due for login in logins}
    before = process_time()
    await asyncio.sleep(INTERVAL)
    cpu = process_time() - before
    checked = sum(login.due != due[login] for login in logins)
    await checks.stop()
    end_threads(10)
    return cpu, checked
