"""Logouts and other ends of logins are neither delayed for long nor lost while Redis does not respond."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from reliable_cable import disconnecting, login_signals
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.identity import identify
from reliable_cable.logins import session_digest
from reliable_cable.protocol.control import LoginChange, Revocation, decode
from reliable_cable.stores.engine import get_engine
from tests.support.redis import RedisServer

#: How long, in seconds, retried calls may take after Redis responds again.
PATIENCE = 30.0


@pytest.fixture
def redis(tmp_path: Path, settings: Any) -> Iterator[RedisServer]:
    """A Redis server that the test may suspend."""
    with RedisServer(tmp_path) as server:
        settings.RELIABLE_CABLE = {"REDIS_URL": server.url}
        yield server


@pytest.mark.django_db(transaction=True)
def test_a_hanging_redis_delays_no_logout_for_long(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """The socket timeout of the Redis client is 5 s, and a logout makes three calls."""
    users = [get_user_model().objects.create_user(name) for name in ("ann", "bob")]
    browsers = [Client() for _ in users]
    for browser, user in zip(browsers, users, strict=True):
        browser.force_login(user)
    keys = [browser.session.session_key for browser in browsers]
    redis.suspend()
    try:
        times = []
        for browser in browsers:
            began = time.monotonic()
            browser.logout()
            times.append(time.monotonic() - began)
        assert max(times) < 4
        assert times[1] < times[0], "the second logout waits for a Redis that is known to hang"
    finally:
        redis.resume()
    assert disconnecting._pending.flush(PATIENCE)
    assert login_signals._pending.flush(PATIENCE)
    engine = get_engine()
    assert all(engine.sessions.revoked([{"user": identify(user)} for user in users]))
    page = engine.streams.read(CONTROL_STREAM, after=0, limit=100)
    messages = [message for entry in page.entries for message in decode(entry.data)]
    assert {message.condition["user"] for message in messages if isinstance(message, Revocation)} == set(
        map(identify, users)
    )
    changes = [message for message in messages if isinstance(message, LoginChange)]
    assert [LoginChange({"session": session_digest(str(key))}) for key in keys] == changes
    assert "are not closed yet" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_the_end_of_a_login_is_announced_when_redis_is_back(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    user: Any = get_user_model().objects.create_user("ann")
    redis.stop()
    user.set_password("new")
    user.save()
    assert "The end of a login could not be announced" in caplog.text
    redis.start()
    assert login_signals._pending.flush(PATIENCE)
    page = get_engine().streams.read(CONTROL_STREAM, after=0, limit=100)
    assert [decode(entry.data) for entry in page.entries] == [[LoginChange({"user": str(user.pk)})]]
