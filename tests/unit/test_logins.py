"""A connection that a Django session has authenticated has a login, which is checked with any session engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from importlib import import_module
from typing import Any, ClassVar
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from django.conf import settings as django_settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AbstractUser
from django.contrib.sessions.backends.db import SessionStore as DatabaseSessionStore
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.db import OperationalError, connections
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from reliable_cable import CableConsumer
from reliable_cable.auth import CableAuthMiddlewareStack
from reliable_cable.consumer import get_hub
from reliable_cable.logins import AnyLogin, Login, check_logins, find_login

from .wire import Client, connection_of

SQLITE = pytest.param("default", id="sqlite", marks=pytest.mark.django_db)
POSTGRES = pytest.param(
    "postgres", id="postgres", marks=[pytest.mark.postgres, pytest.mark.django_db(databases=["postgres"])]
)
BACKEND = "django.contrib.auth.backends.ModelBackend"
ENGINES = ["db", "cached_db", "cache", "file", "signed_cookies"]
#: The engines whose sessions the server can delete.
STORED = ["db", "cached_db", "cache", "file"]


class Router:
    """Uses one database for all models."""

    alias = "default"

    def db_for_read(self, model: object, **hints: object) -> str:
        return self.alias

    db_for_write = db_for_read


@pytest.fixture(autouse=True)
def _fast_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def alias(request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database of users and sessions."""
    monkeypatch.setattr(Router, "alias", request.param)
    settings.DATABASE_ROUTERS = [f"{__name__}.Router"]
    return str(request.param)


@pytest.fixture
def engine(request: pytest.FixtureRequest, settings: Any, tmp_path: Any) -> Iterator[str]:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{request.param}"
    settings.SESSION_FILE_PATH = str(tmp_path)
    yield str(request.param)
    cache.clear()


def make_user(name: str = "ann") -> AbstractUser:
    user: AbstractUser = get_user_model().objects.create_user(name, password="secret")
    return user


def log_in(user: AbstractUser, *, expiry: Any = None, **values: str) -> Login:
    """Save a session of a user, and return its login."""
    session = import_module(django_settings.SESSION_ENGINE).SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = BACKEND
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.update(values)
    session.set_expiry(expiry)
    session.save()
    login = find_login({"session": session})
    assert login is not None
    return login


def delete(login: Login) -> None:
    """Delete the session of a login."""
    import_module(django_settings.SESSION_ENGINE).SessionStore(login.session_key).delete()


every_engine = pytest.mark.parametrize("engine", ENGINES, indirect=True)
every_database = pytest.mark.parametrize("alias", [SQLITE, POSTGRES], indirect=True)


@every_engine
@every_database
class TestCheck:
    def test_a_login_is_valid_until_something_happens(self, engine: str, alias: str) -> None:
        user = make_user()
        assert check_logins([log_in(user), log_in(user), log_in(make_user("bob"))]) == [True, True, True]

    def test_a_new_password_ends_the_logins_of_the_user(self, engine: str, alias: str) -> None:
        ann, bob = make_user(), make_user("bob")
        logins = [log_in(ann), log_in(bob), log_in(ann)]
        ann.set_password("new")
        ann.save()
        assert check_logins([*logins, log_in(ann)]) == [False, True, False, True]

    def test_a_user_who_is_not_active_has_no_login(self, engine: str, alias: str) -> None:
        user = make_user()
        login = log_in(user)
        get_user_model().objects.filter(pk=user.pk).update(is_active=False)
        assert check_logins([login]) == [False]

    def test_a_user_who_was_deleted_has_no_login(self, engine: str, alias: str) -> None:
        user = make_user()
        login = log_in(user)
        user.delete()
        assert check_logins([login, log_in(make_user("bob"))]) == [False, True]

    def test_a_rotated_secret_key_ends_logins_unless_it_is_a_fallback(
        self, engine: str, alias: str, settings: Any
    ) -> None:
        login = log_in(make_user())
        former, settings.SECRET_KEY = settings.SECRET_KEY, "new"
        assert check_logins([login]) == [False]
        settings.SECRET_KEY_FALLBACKS = [former]
        assert check_logins([login]) == [True]


@pytest.mark.parametrize("engine", STORED, indirect=True)
@every_database
class TestStoredSessions:
    def test_a_deleted_session_ends_the_login(self, engine: str, alias: str) -> None:
        user = make_user()
        logins = [log_in(user), log_in(user)]
        delete(logins[0])
        assert check_logins(logins) == [False, True]

    def test_an_expired_session_ends_the_login(self, engine: str, alias: str) -> None:
        user = make_user()
        expired = log_in(user, expiry=timezone.now() - timedelta(seconds=5))
        assert check_logins([expired, log_in(user, expiry=60)]) == [False, True]

    @pytest.mark.parametrize("content", ["nobody", "another user"])
    def test_a_session_without_the_user_of_the_login_ends_the_login(
        self, engine: str, alias: str, content: str
    ) -> None:
        user, other = make_user(), make_user("bob")
        login = log_in(user)
        session = import_module(django_settings.SESSION_ENGINE).SessionStore(login.session_key)
        if content == "nobody":
            del session[SESSION_KEY]
        else:
            session[SESSION_KEY] = str(other.pk)
        session.save()
        assert check_logins([login, log_in(user)]) == [False, True]


@pytest.mark.parametrize("alias", [SQLITE], indirect=True)
class TestOtherEngines:
    @pytest.mark.parametrize("engine", ["signed_cookies"], indirect=True)
    def test_signed_cookies_expire(self, engine: str, alias: str, settings: Any) -> None:
        login = log_in(make_user())
        settings.SESSION_COOKIE_AGE = -1
        assert check_logins([login]) == [False]

    @pytest.mark.parametrize("engine", ["cache"], indirect=True)
    def test_a_cache_that_has_lost_its_data_ends_all_logins_and_one_that_fails_ends_none(
        self, engine: str, alias: str
    ) -> None:
        logins = [log_in(make_user(name)) for name in ("ann", "bob")]
        away = mock.patch.object(type(cache._connections["default"]), "get_many", side_effect=ConnectionError)  # type: ignore[attr-defined]
        with away, pytest.raises(ConnectionError):
            check_logins(logins)
        cache.clear()
        assert check_logins(logins) == [False, False]

    @pytest.mark.parametrize("engine", ["cached_db"], indirect=True)
    def test_the_database_decides_if_the_cache_has_lost_a_session_or_fails(self, engine: str, alias: str) -> None:
        login = log_in(make_user())
        cache.clear()
        assert check_logins([login]) == [True]
        with mock.patch.object(type(cache._connections["default"]), "get_many", side_effect=ConnectionError):  # type: ignore[attr-defined]
            assert check_logins([login]) == [True]

    def test_an_engine_with_its_own_look_up_is_asked_for_each_session(self, alias: str, settings: Any) -> None:
        settings.SESSION_ENGINE = __name__
        user = make_user()
        logins = [log_in(user, name="away"), log_in(user), log_in(user)]
        SessionStore.away = {logins[0].session_key}
        delete(logins[1])
        unknown, ended, valid = check_logins(logins)
        assert isinstance(unknown, OperationalError)
        assert (ended, valid) == (False, True)

    def test_a_backend_with_its_own_look_up_decides_for_each_user(self, alias: str, settings: Any) -> None:
        path = f"{__name__}.Directory"
        settings.AUTHENTICATION_BACKENDS = [path]
        logins = [log_in(make_user(name), **{BACKEND_SESSION_KEY: path}) for name in ("away", "retired", "ann")]
        unknown, ended, valid = check_logins(logins)
        assert isinstance(unknown, ConnectionError)
        assert (ended, valid) == (False, True)

    @pytest.mark.parametrize("method", ["get_session_auth_hash", "user_can_authenticate"])
    def test_an_error_of_one_user_does_not_prevent_the_checks_of_others(
        self, alias: str, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken, ended, valid = (make_user(name) for name in ("broken", "ended", "ann"))
        logins = [log_in(user) for user in (broken, ended, valid)]
        get_user_model().objects.filter(pk=ended.pk).update(is_active=False)
        owner = get_user_model() if method == "get_session_auth_hash" else ModelBackend
        original = getattr(owner, method)

        def fail_for_one(self: Any, *args: Any) -> Any:
            if (args[0] if args else self).username == "broken":
                raise LookupError("this user has no profile")
            return original(self, *args)

        monkeypatch.setattr(owner, method, fail_for_one)
        unknown, *others = check_logins(logins)
        assert isinstance(unknown, LookupError)
        assert others == [False, True]

    def test_a_login_of_a_backend_that_was_removed_has_ended(self, alias: str) -> None:
        user = make_user()
        login = log_in(user, **{BACKEND_SESSION_KEY: "no.such.Backend"})
        assert check_logins([login, log_in(user)]) == [False, True]

    def test_an_outage_of_the_database_is_raised(self, alias: str) -> None:
        login = log_in(make_user())
        away = OperationalError("away")
        with mock.patch.object(Session.objects, "filter", side_effect=away), pytest.raises(OperationalError):
            check_logins([login])


class SessionStore(DatabaseSessionStore):
    """A session engine with its own look-up. The sessions in `away` cannot be read."""

    away: ClassVar[set[str]] = set()

    def load(self) -> dict[str, Any]:
        if self.session_key in self.away:
            raise OperationalError("away")
        return super().load()


class Directory(ModelBackend):
    """An authentication backend with its own look-up of users."""

    def get_user(self, user_id: Any) -> Any:
        user = super().get_user(user_id)
        if user is not None and user.username == "away":
            raise ConnectionError("the directory is away")
        return None if user is not None and user.username == "retired" else user


@pytest.mark.parametrize(("engine", "queries"), [("db", 2), ("cached_db", 1), ("cache", 1)], indirect=["engine"])
@pytest.mark.parametrize("alias", [SQLITE, POSTGRES], indirect=True)
def test_a_batch_is_one_query_for_sessions_and_one_for_users(engine: str, alias: str, queries: int) -> None:
    users = [make_user(str(number)) for number in range(10)]
    logins = [log_in(user) for user in users for _ in range(3)]
    with CaptureQueriesContext(connections[alias]) as captured:
        assert check_logins(logins) == [True] * 30
    assert len(captured) == queries


current_tenant: ContextVar[str] = ContextVar("current_tenant", default="")


class TenantBackend(ModelBackend):
    """A backend that finds only the user with the name of the current tenant."""

    def get_user(self, user_id: Any) -> Any:
        user = super().get_user(user_id)
        return user if user is not None and user.get_username() == current_tenant.get() else None


class TenantConsumer(CableConsumer):
    """A consumer whose handlers run in a tenant."""

    @contextmanager
    def around_command(self) -> Iterator[None]:
        token = current_tenant.set(self.scope["tenant"])
        yield
        current_tenant.reset(token)


@pytest.mark.django_db(transaction=True)
class TestChecksOfConnections:
    """Logins are checked in the context of their connections, inside of `around_command`."""

    @pytest.fixture(autouse=True)
    def _settings(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
        settings.AUTHENTICATION_BACKENDS = [f"{__name__}.TenantBackend"]

    def connect(self, tenant: str) -> Client:
        """Return a client, not yet connected, with a login of a new user who has the name of the tenant."""
        login = log_in(make_user(tenant), **{BACKEND_SESSION_KEY: f"{__name__}.TenantBackend"})
        session = import_module(django_settings.SESSION_ENGINE).SessionStore(login.session_key)
        user = get_user_model().objects.get(pk=session[SESSION_KEY])
        return Client(consumer=TenantConsumer, scope={"session": session, "user": user, "tenant": tenant})

    @pytest.mark.parametrize("ending", ["a", "b"])
    async def test_a_check_of_several_tenants_ends_the_logins_that_have_ended_in_their_tenant(
        self, ending: str
    ) -> None:
        clients = {name: await sync_to_async(self.connect)(name) for name in ("a", "b")}
        staying = clients["b" if ending == "a" else "a"]
        # Logins are checked in the order in which their connections were opened.
        async with staying, clients[ending]:
            await get_user_model().objects.filter(username=ending).adelete()
            get_hub().logins.check_all()
            frame = await clients[ending].receive()
            assert frame == {"type": "disconnect", "reason": "remote", "reconnect": True}
            await staying.send_text('{"command":"ping"}')
            assert await staying.receive() == {"type": "pong"}

    async def test_all_logins_are_checked_after_a_loss_of_control_messages(self) -> None:
        client = await sync_to_async(self.connect)("a")
        async with client:
            await get_user_model().objects.filter(username="a").aupdate(is_active=False)
            get_hub().control.messages_lost()
            assert await client.receive() == {"type": "disconnect", "reason": "remote", "reconnect": True}


@pytest.mark.django_db(transaction=True)
async def test_a_logout_closes_the_connections_of_the_session_whatever_identifies_them(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}

    class DeviceConsumer(CableConsumer):
        identified_by = ("tenant",)

        def connect(self) -> None:
            self.tenant = "phone"

    def log_in_browser(user: Any) -> tuple[Browser, Client]:
        browser = Browser()
        browser.force_login(user)
        session = browser.session
        assert session[SESSION_KEY] == str(user.pk)
        return browser, Client(consumer=DeviceConsumer, scope={"session": session, "user": user})

    user = await sync_to_async(make_user)()
    browser, client = await sync_to_async(log_in_browser)(user)
    _, other = await sync_to_async(log_in_browser)(user)
    async with client, other:
        await sync_to_async(browser.logout)()
        assert await client.receive() == {"type": "disconnect", "reason": "remote", "reconnect": True}
        assert await other.quiet()


@pytest.mark.usefixtures("memory_engine")
class TestWhichConnections:
    """A connection has a login only if a Django session with a user has authenticated it."""

    pytestmark = pytest.mark.django_db(transaction=True)

    async def login_of(self, consumer: type[CableConsumer], stack: Any = None, **scope: Any) -> AnyLogin | None:
        """Return the login of a connection."""
        client = Client(consumer=consumer, scope=scope)
        if stack is not None:
            client.communicator.application = stack(consumer.as_asgi())
        async with client:
            return connection_of(client).login

    @pytest.mark.parametrize("stack", [CableAuthMiddlewareStack, AuthMiddlewareStack])
    async def test_a_user_whom_a_middleware_has_found_in_the_session(self, stack: Any) -> None:
        expected = await sync_to_async(lambda: log_in(make_user()))()
        cookie = f"{django_settings.SESSION_COOKIE_NAME}={expected.session_key}".encode()
        login = await self.login_of(CableConsumer, stack, headers=[(b"cookie", cookie)])
        assert isinstance(login, Login)
        assert (login.session_key, login.user_id) == (expected.session_key, expected.user_id)

    @pytest.mark.parametrize("stack", [CableAuthMiddlewareStack, AuthMiddlewareStack, None])
    async def test_nobody_without_a_session(self, stack: Any) -> None:
        assert await self.login_of(CableConsumer, stack) is None

    async def test_nobody_whom_connect_has_authenticated_in_another_way(self) -> None:
        other = await sync_to_async(make_user)("other")

        class TokenConsumer(CableConsumer):
            def connect(self) -> None:
                self.user = other

        login = await sync_to_async(lambda: log_in(make_user()))()
        cookie = f"{django_settings.SESSION_COOKIE_NAME}={login.session_key}".encode()
        assert await self.login_of(TokenConsumer, CableAuthMiddlewareStack, headers=[(b"cookie", cookie)]) is None

    @pytest.mark.parametrize("scope", [{"user": "ann"}, {"user": "ann", "session": {SESSION_KEY: "1"}}])
    async def test_nobody_whom_a_middleware_has_authenticated_without_a_session_of_django(self, scope: Any) -> None:
        assert await self.login_of(CableConsumer, **scope) is None
