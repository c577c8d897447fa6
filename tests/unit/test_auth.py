"""Tests of `CableAuthMiddlewareStack`, which must find the same session and user as `AuthMiddlewareStack`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from channels.auth import AuthMiddlewareStack
from django.conf import settings as django_settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AbstractUser
from django.contrib.sessions.backends.base import SessionBase
from django.db import OperationalError, connections

from reliable_cable.auth import CableAuthMiddlewareStack
from reliable_cable.auth import sessions as auth
from reliable_cable.concurrency import threads
from reliable_cable.concurrency.batching import BATCH_SIZE
from reliable_cable.protocol.constants import TRY_AGAIN
from tests.stores.conftest import with_own_connection

pytestmark = pytest.mark.django_db(transaction=True)

ENGINES = ["db", "cached_db", "cache", "file", "signed_cookies"]
Scope = dict[str, Any]
Stack = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def handlers_without_connections() -> Iterator[None]:
    """Close the database connections of the handler threads and of Django's thread, so that later tests find none."""
    yield
    assert threads.end_threads(30)
    SyncToAsync.single_thread_executor.submit(connections.close_all).result(30)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, settings: Any, tmp_path: Any) -> str:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{request.param}"
    settings.SESSION_FILE_PATH = str(tmp_path)
    return str(request.param)


@pytest.fixture
def user() -> AbstractUser:
    alice: AbstractUser = get_user_model().objects.create_user("alice", password="secret")
    return alice


async def in_thread(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in another thread, and close the database connections of that thread."""
    return await asyncio.to_thread(with_own_connection(partial(call, *args, **kwargs)))


def session_of(user: AbstractUser | None, **values: Any) -> str:
    """Save a session, and return its cookie."""
    session: SessionBase = import_module(django_settings.SESSION_ENGINE).SessionStore()
    if user is not None:
        session[SESSION_KEY] = str(user.pk)
        session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
        session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.update({"theme": "dark", **values})
    session.save()
    assert session.session_key
    return session.session_key


async def connect(stack: Stack, cookie: str | None = None, scope: Scope | None = None, **more: Any) -> Scope:
    """Return the scope that a middleware stack passes to the application."""
    scopes: list[Scope] = []

    async def application(scope: Scope, receive: Any, send: Any) -> None:
        scopes.append(scope)

    headers = [(b"host", b"example.org")]
    if cookie is not None:
        headers.append((b"cookie", f"first=1; {django_settings.SESSION_COOKIE_NAME}={cookie}".encode("latin1")))
    await stack(application)(scope or {"type": "websocket", "headers": headers, **more}, None, None)
    return scopes[0]


async def receive_nothing() -> None:
    """Take the place of the ASGI `receive`, and never return."""
    await asyncio.get_running_loop().create_future()


async def connect_both(cookie: str | None = None, **more: Any) -> tuple[Scope, Scope]:
    ours = await connect(CableAuthMiddlewareStack, cookie, **more)
    return ours, await connect(AuthMiddlewareStack, cookie, **more)


def visible(scope: Scope) -> dict[str, Any]:
    """Return the parts of a scope that applications read."""
    session, user = scope["session"], scope["user"]
    return {
        "cookies": scope["cookies"],
        "user": (user.is_authenticated, user.pk, str(user)),
        "session": dict(session.items()),
        "key": session.session_key,
        "modified": session.modified,
    }


async def connect_and_compare(cookie: str | None = None) -> Scope:
    ours, channels = await connect_both(cookie)
    assert await in_thread(visible, ours) == await in_thread(visible, channels)
    return ours


class TestAsChannels:
    async def test_a_user_who_is_logged_in(self, engine: str, user: AbstractUser) -> None:
        scope = await connect_and_compare(await in_thread(session_of, user))
        assert scope["user"] == user
        assert await scope["session"].aget("theme") == "dark"

    async def test_a_session_without_a_user(self, engine: str) -> None:
        scope = await connect_and_compare(await in_thread(session_of, None))
        assert scope["user"].is_anonymous

    @pytest.mark.parametrize("cookie", [None, "", "short", "unknown-session-key-unknown-key0"])
    async def test_no_session(self, engine: str, cookie: str | None) -> None:
        scope = await connect_and_compare(cookie)
        assert scope["user"].is_anonymous

    async def test_a_password_that_was_changed_ends_the_session(self, user: AbstractUser) -> None:
        cookies = [await in_thread(session_of, user) for _ in range(2)]
        await in_thread(user.set_password, "other")
        await user.asave()
        ours = await connect(CableAuthMiddlewareStack, cookies[0])
        channels = await connect(AuthMiddlewareStack, cookies[1])
        for scope in (ours, channels):
            assert scope["user"].is_anonymous
            assert await in_thread(scope["session"].is_empty)
        store = import_module(django_settings.SESSION_ENGINE).SessionStore
        assert [await in_thread(store().exists, cookie) for cookie in cookies] == [False, False]

    @pytest.mark.parametrize(
        "values",
        [
            {SESSION_KEY: "987654"},
            {BACKEND_SESSION_KEY: "no.such.Backend"},
            {HASH_SESSION_KEY: "0" * 64},
            {HASH_SESSION_KEY: ""},
        ],
        ids=["user is gone", "backend is gone", "wrong hash", "no hash"],
    )
    async def test_an_invalid_session(self, user: AbstractUser, values: dict[str, Any]) -> None:
        cookies = [await in_thread(session_of, user, **values) for _ in range(2)]
        ours = await in_thread(visible, await connect(CableAuthMiddlewareStack, cookies[0]))
        channels = await in_thread(visible, await connect(AuthMiddlewareStack, cookies[1]))
        for scope in (ours, channels):
            del scope["cookies"], scope["key"]
        assert ours == channels
        assert ours["user"][0] is False

    async def test_clients_can_retry_after_an_outage_of_the_database(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def away(session: SessionBase) -> None:
            raise OperationalError("the database is away")

        async def application(scope: Scope, receive: Any, send: Any) -> None:
            raise AssertionError("the user is unknown, so the application must not be called")

        async def send(message: Any) -> None:
            sent.append(message)

        sent: list[Any] = []
        monkeypatch.setattr(auth, "_users", away)
        headers = [(b"cookie", f"{django_settings.SESSION_COOKIE_NAME}=some-session-key".encode())]
        stack: Any = CableAuthMiddlewareStack(application)
        await stack({"type": "websocket", "headers": headers}, receive_nothing, send)
        assert sent == [{"type": "websocket.close", "reason": TRY_AGAIN}], "the client must try again"
        assert [record.exc_info for record in caplog.records] == [None], "the log must have no traceback"

    async def test_an_existing_session_and_user_in_the_scope_are_kept(self, user: AbstractUser) -> None:
        cookie = await in_thread(session_of, user)
        session: dict[str, Any] = {}
        scope = await connect(CableAuthMiddlewareStack, cookie, session=session, user="somebody")
        assert scope["session"] is session
        assert scope["user"] == "somebody"

    async def test_the_scope_of_the_server_is_not_changed(self) -> None:
        scope = {"type": "websocket", "headers": []}
        assert await connect(CableAuthMiddlewareStack, scope=scope) is not scope
        assert set(scope) == {"type", "headers"}

    async def test_http_is_handled_by_channels(self, user: AbstractUser) -> None:
        cookie = await in_thread(session_of, user)
        sent: list[dict[str, Any]] = []

        async def application(scope: Scope, receive: Any, send: Any) -> None:
            await scope["session"].aset("seen", value=True)
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"cookie", f"{django_settings.SESSION_COOKIE_NAME}={cookie}".encode())]
        await CableAuthMiddlewareStack(application)({"type": "http", "headers": headers}, None, send)  # type: ignore[arg-type]
        assert any(name == b"Set-Cookie" for name, _ in sent[0]["headers"])


class TestSecretKeyFallbacks:
    async def test_a_session_of_a_fallback_key_is_accepted_and_not_changed(
        self, user: AbstractUser, settings: Any
    ) -> None:
        cookie = await in_thread(session_of, user)
        settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", [settings.SECRET_KEY]
        for _ in range(2):
            scope = await connect(CableAuthMiddlewareStack, cookie)
            assert scope["user"] == user
            assert scope["session"].session_key == cookie
            assert not scope["session"].modified

    async def test_a_session_of_a_removed_key_is_ended(self, user: AbstractUser, settings: Any) -> None:
        cookie = await in_thread(session_of, user)
        settings.SECRET_KEY = "new"
        assert (await connect(CableAuthMiddlewareStack, cookie))["user"].is_anonymous


class GatedBackend(ModelBackend):
    """A backend that reports a look-up, and then waits for `gate`. It raises an error for the user id 0."""

    entered: threading.Event
    gate: threading.Event

    def get_user(self, user_id: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(10)
        if user_id == 0:
            raise LookupError("the directory is away")
        return super().get_user(user_id)


class TestCost:
    @pytest.fixture(autouse=True)
    def _backend(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.AUTHENTICATION_BACKENDS = [f"{__name__}.GatedBackend"]
        monkeypatch.setattr(GatedBackend, "entered", threading.Event(), raising=False)
        monkeypatch.setattr(GatedBackend, "gate", threading.Event(), raising=False)

    def _session(self, user: AbstractUser, **values: Any) -> str:
        return session_of(user, **{BACKEND_SESSION_KEY: f"{__name__}.GatedBackend", **values})

    async def test_a_client_without_a_session_costs_no_thread_hop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def never(session: SessionBase) -> None:
            raise AssertionError("a session was looked up")

        monkeypatch.setattr(auth, "_users", never)
        for cookie in (None, "", "short"):
            assert (await connect(CableAuthMiddlewareStack, cookie))["user"].is_anonymous

    @pytest.mark.parametrize("cookie", ['"unknown-session\\000key"', "unknown-session\0key"])
    async def test_a_key_with_a_nul_is_not_looked_up(self, cookie: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """PostgreSQL raises an error for a query with a NUL."""

        async def never(session: SessionBase) -> None:
            raise AssertionError("a session was looked up")

        monkeypatch.setattr(auth, "_users", never)
        scope = await connect(CableAuthMiddlewareStack, cookie)
        assert scope["user"].is_anonymous
        assert scope["session"].session_key is None

    async def test_concurrent_clients_are_looked_up_together(
        self, user: AbstractUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hops: list[int] = []
        handle = auth._users._batches._handle

        async def counted(calls: Sequence[Any]) -> Any:
            hops.append(len(calls))
            return await handle(calls)

        monkeypatch.setattr(auth._users._batches, "_handle", counted)
        cookie = await in_thread(self._session, user)
        tasks = [asyncio.create_task(connect(CableAuthMiddlewareStack, cookie)) for _ in range(120)]
        assert await asyncio.to_thread(GatedBackend.entered.wait, 10)
        GatedBackend.gate.set()
        scopes = await asyncio.gather(*tasks)
        assert {scope["user"].pk for scope in scopes} == {user.pk}
        assert sum(hops) == 120
        assert max(hops) == BATCH_SIZE
        assert len(hops) <= 4

    async def test_an_error_for_one_client_does_not_affect_the_others(self, user: AbstractUser) -> None:
        GatedBackend.gate.set()
        bad = await in_thread(self._session, user, **{SESSION_KEY: "0"})
        good = await in_thread(self._session, user)
        outcomes = await asyncio.gather(
            *(connect(CableAuthMiddlewareStack, cookie) for cookie in (good, bad, good)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [dict, LookupError, dict]

    async def test_a_client_that_leaves_during_the_look_up_does_not_affect_the_others(self, user: AbstractUser) -> None:
        cookie = await in_thread(self._session, user)
        tasks = [asyncio.create_task(connect(CableAuthMiddlewareStack, cookie)) for _ in range(3)]
        assert await asyncio.to_thread(GatedBackend.entered.wait, 10)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        GatedBackend.gate.set()
        scopes = await asyncio.gather(*tasks[1:])
        assert [scope["user"].pk for scope in scopes] == [user.pk, user.pk]
