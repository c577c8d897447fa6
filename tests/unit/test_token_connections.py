"""A token authenticates a connection, which ends when the token expires or its user is revoked."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.db import OperationalError

from reliable_cable import Channel, action, cable_token, disconnect, presence_for
from reliable_cable.auth import CableAuthMiddlewareStack, TokenAuthMiddleware
from reliable_cable.auth.users import find_user
from reliable_cable.channel import registry
from reliable_cable.testing import CableCommunicator, isolated_cable
from tests.unit.token_clients import EXPIRED, REFUSED, WELCOME, TokenConsumer, first_frame, log_in, make_client
from tests.unit.tokens import SECRET, after, sign
from tests.unit.wire import connection_of, identifier, run_event_loop, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("token_settings")]

User = get_user_model()


BOTH = pytest.mark.parametrize("stack", [CableAuthMiddlewareStack, TokenAuthMiddleware])


class TestIdentifiers:
    @BOTH
    async def test_they_are_set_before_connect_runs(self, stack: Any, user: Any) -> None:
        token = cable_token({"user": user, "room": 7, "unknown": 1, "scope": 2})
        async with make_client(token, stack=stack) as client:
            assert client.welcome["type"] == WELCOME
            seen, claims, room = TokenConsumer.seen
            assert (seen, room) == (user, 7)
            assert claims["ext"] == f'{{"room":7,"scope":2,"unknown":1,"user":"auth.user:{user.pk}"}}'
            connection = connection_of(client)
            assert connection.identity == {"user": f"auth.user:{user.pk}", "room": "int:7"}
            assert not hasattr(connection.consumer, "unknown")

    async def test_disconnect_finds_the_connection(self, user: Any) -> None:
        async with make_client(cable_token(user)) as client:
            await sync_to_async(disconnect)(user=user)
            assert (await client.receive())["reason"] == "remote"

    @BOTH
    async def test_no_token(self, stack: Any) -> None:
        async with make_client(stack=stack) as client:
            assert client.welcome["type"] == WELCOME
            assert TokenConsumer.seen == (AnonymousUser(), None, None)

    async def test_a_token_without_a_user_leaves_the_session_aside(self, user: Any) -> None:
        cookie = await log_in(user)
        async with make_client(sign(ext={"room": "x"}), cookie=cookie) as client:
            assert TokenConsumer.seen[0] == AnonymousUser()
            assert TokenConsumer.seen[2] == "x"
            assert connection_of(client).login is None
            assert await sync_to_async(connection_of(client).consumer.scope["session"].is_empty)()

    async def test_connect_may_refuse_the_client(self, user: Any) -> None:
        assert await first_frame(make_client(sign(ext={"user": user.pk}, banned=True))) == REFUSED
        assert await first_frame(make_client(sign(ext={"user": user.pk}, banned=False))) != REFUSED

    @pytest.mark.parametrize(
        "nested",
        [
            lambda app: AuthMiddlewareStack(TokenAuthMiddleware(app)),
            lambda app: TokenAuthMiddleware(AuthMiddlewareStack(app)),
            lambda app: CableAuthMiddlewareStack(TokenAuthMiddleware(app)),
            lambda app: TokenAuthMiddleware(CableAuthMiddlewareStack(app)),
        ],
    )
    async def test_middlewares_in_any_order(self, nested: Any, user: Any) -> None:
        """The user of the token replaces that of the session, and a wrong token is refused."""
        other = await sync_to_async(User.objects.create_user)("bob", password="secret")
        cookie = await log_in(other)
        async with make_client(cable_token(user), stack=nested, cookie=cookie) as client:
            assert TokenConsumer.seen[0] == user
            login = connection_of(client).login
            assert login is not None
            assert login.identity == {"user": str(user.pk)}
        assert await first_frame(make_client("junk", stack=nested, cookie=cookie)) == REFUSED
        async with make_client(stack=nested, cookie=cookie):
            assert TokenConsumer.seen[:2] == (other, None)


class TestRefusals:
    @BOTH
    async def test_expired(self, stack: Any, user: Any) -> None:
        frame = await first_frame(make_client(sign(ext={"user": user.pk}, exp=after(-1)), stack=stack))
        assert frame == EXPIRED
        assert TokenConsumer.seen is None

    @BOTH
    async def test_a_bad_token_never_falls_back_to_the_session(self, stack: Any, user: Any) -> None:
        cookie = await log_in(user)
        for token in ("junk", sign("x" * 32, ext={"user": user.pk}), "x" * 9000, sign(ext={"user": 987654})):
            assert await first_frame(make_client(token, stack=stack, cookie=cookie)) == REFUSED
        assert TokenConsumer.seen is None

    @BOTH
    async def test_the_base_protocol(self, stack: Any) -> None:
        assert await first_frame(make_client("junk", stack=stack, protocol="actioncable-v1-json")) == REFUSED

    async def test_a_required_token(self, settings: Any, user: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_REQUIRED": True}
        assert await first_frame(make_client(cookie=await log_in(user))) == REFUSED
        assert await first_frame(make_client("junk")) == REFUSED
        async with make_client(cable_token(user)):
            assert TokenConsumer.seen[0] == user

    async def test_a_required_token_is_required_without_a_middleware_too(self, settings: Any, user: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_REQUIRED": True}
        assert await first_frame(make_client(cable_token(user), stack=lambda app: app)) == REFUSED

    async def test_the_log_says_why_and_has_no_token(self, caplog: pytest.LogCaptureFixture, user: Any) -> None:
        caplog.set_level(logging.DEBUG)
        tokens = [
            sign("x" * 32, ext={"user": user.pk}),
            sign(ext={"user": user.pk}, exp=after(-1)),
            sign(ext="junk"),
            cable_token(user),
        ]
        for token in tokens:
            await first_frame(make_client(token))
        for reason in ("has a wrong signature", "has expired", "has a claim 'ext'"):
            assert sum(reason in line for line in caplog.messages) == 1
        for token in tokens:
            for part in token.split("."):
                assert part not in caplog.text

    async def test_an_outage_makes_the_client_come_back(self, monkeypatch: pytest.MonkeyPatch, user: Any) -> None:
        def fail(*args: Any) -> None:
            raise OperationalError("away")

        monkeypatch.setattr(find_user, "_function", fail)
        for stack in (CableAuthMiddlewareStack, TokenAuthMiddleware):
            client = make_client(cable_token(user), stack=stack)
            assert await client.communicator.connect() == (False, 1000)

    async def test_other_consumers_get_an_anonymous_user(self) -> None:
        scopes = []

        async def application(scope: Any, receive: Any, send: Any) -> None:
            scopes.append(scope)

        scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"jid=junk", "user": "ann"}
        await TokenAuthMiddleware(application)(scope, None, None)  # type: ignore[arg-type]
        assert scopes[0]["user"] == AnonymousUser()
        http = {"type": "http", "path": "/", "headers": [], "query_string": b"jid=junk", "user": "ann"}
        await TokenAuthMiddleware(application)(http, None, None)  # type: ignore[arg-type]
        assert scopes[1] is http


class TestWithoutSettings:
    @pytest.fixture(autouse=True)
    def _no_settings(self, token_settings: None, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "SECRET": SECRET, "PING_INTERVAL": 60}

    async def test_the_stack_ignores_tokens_and_says_so_once(self, caplog: pytest.LogCaptureFixture, user: Any) -> None:
        cookie = await log_in(user)
        stack = CableAuthMiddlewareStack(TokenConsumer.as_asgi())
        for token in ("own-format", sign(ext={}), sign(ext={})):
            async with make_client(token, cookie=cookie, stack=lambda app: stack):
                assert TokenConsumer.seen[:2] == (user, None)
        assert sum("set JWT_SECRET" in line for line in caplog.messages) == 1

    async def test_the_middleware_reads_them(self, user: Any, caplog: pytest.LogCaptureFixture) -> None:
        for stack in (TokenAuthMiddleware, lambda app: TokenAuthMiddleware(CableAuthMiddlewareStack(app))):
            async with make_client(cable_token(user), stack=stack):
                assert TokenConsumer.seen[0] == user
        assert "is ignored" not in caplog.text


class TestSessions:
    async def test_a_restore_checks_the_token_again(self, user: Any) -> None:
        async with make_client(cable_token(user)) as client:
            sid = client.sid
        assert await first_frame(make_client(sign(ext={"user": user.pk}, exp=after(-1)), sid=sid)) == EXPIRED
        assert await first_frame(make_client("junk", sid=sid)) == REFUSED
        other = await sync_to_async(User.objects.create_user)("bob", password="secret")
        for token in (cable_token(other), ""):
            async with make_client(token, sid=sid) as stranger:
                assert "restored" not in stranger.welcome
        async with make_client(cable_token(user), sid=sid) as returned:
            assert returned.welcome["restored"] is True

    async def test_the_session_of_an_expired_connection_is_not_kept(self, user: Any) -> None:
        async with make_client(sign(ext={"user": user.pk}, exp=after(3))) as client:
            sid = client.sid
            assert await client.receive() == EXPIRED
        async with make_client(cable_token(user), sid=sid) as returned:
            assert "restored" not in returned.welcome


class TestExpiry:
    async def test_the_connection_ends_with_its_token_plus_the_leeway(self, settings: Any, user: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_LEEWAY": 1}
        expiry = after(1)
        async with make_client(sign(ext={"user": user.pk}, exp=expiry)) as client:
            assert await client.receive() == EXPIRED
            assert time.time() >= expiry + 1

    async def test_a_pending_subscribe_is_answered_first(self, user: Any) -> None:
        """A client closes a channel for good if its connection ends while the `subscribe` is pending."""
        gate = asyncio.Event()

        class SlowChannel(Channel):
            async def subscribed(self) -> None:
                await gate.wait()

        try:
            async with make_client(cable_token(user)) as client:
                await client.send("subscribe", identifier("SlowChannel"))
                connection = connection_of(client)
                timers = connection.hub.token_expiry
                connection.expires_at = time.time() - 1
                timers._timers[connection].cancel()
                timers._check(connection)
                assert await client.quiet()
                gate.set()
                assert (await client.receive())["type"] == "confirm_subscription"
                assert await client.receive() == EXPIRED
        finally:
            del registry["SlowChannel"]

    async def test_a_session_that_was_taken_over_meanwhile_keeps_its_member(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch, user: Any
    ) -> None:
        """During a slow command, the client loses its connection, and returns with a new token."""
        monkeypatch.setattr("reliable_cable.connection.connection.CLOSE_TIMEOUT", 60.0)
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "PRESENCE_GRACE": 0}
        gate, calls = asyncio.Event(), []

        class SlowChannel(Channel):
            async def subscribed(self) -> None:
                self.stream_from("room")
                self.presence.join("ann")

            @action
            async def work(self) -> None:
                calls.append(self)
                await gate.wait()

        slow = identifier("SlowChannel")
        try:
            first = await make_client(cable_token(user)).__aenter__()
            await first.subscribe(slow)
            await first.perform(slow, "work")
            await until(lambda: calls)
            connection = connection_of(first)
            timers = connection.hub.token_expiry
            connection.expires_at = time.time() - 1
            timers._timers[connection].cancel()
            timers._check(connection)
            await run_event_loop()
            async with make_client(cable_token(user), sid=first.sid) as second:
                assert second.welcome["restored"] is True
                await first.communicator.send_input({"type": "websocket.disconnect", "code": 1006})
                await until(lambda: connection.closed)
                gate.set()
                await first.communicator.wait(10)
                assert (await presence_for("room").ainfo()).total == 1
        finally:
            del registry["SlowChannel"]

    async def test_an_ended_connection_has_no_timer(self, user: Any) -> None:
        async with make_client(cable_token(user)) as client:
            timers = connection_of(client).hub.token_expiry._timers
            assert len(timers) == 1
        assert not timers

    async def test_a_token_without_an_expiry_has_no_timer(self, user: Any) -> None:
        async with make_client(sign(ext={"user": user.pk})) as client:
            assert not connection_of(client).hub.token_expiry._timers


class TestRevokedUsers:
    @pytest.mark.parametrize("change", ["deactivate", "delete"])
    async def test_at_once(self, user: Any, change: str) -> None:
        token = cable_token(user)
        async with make_client(token) as client, make_client() as other:
            if change == "delete":
                await user.adelete()
            else:
                user.is_active = False
                await user.asave()
            assert await client.receive() == {"type": "disconnect", "reason": "remote", "reconnect": True}
            assert await other.quiet()
        assert await first_frame(make_client(token)) == REFUSED

    async def test_by_the_regular_checks(self, settings: Any, user: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "REAUTHENTICATE_INTERVAL": 0.2}
        bob = await sync_to_async(User.objects.create_user)("bob", password="secret")
        cookie = await log_in(bob)
        async with make_client(cable_token(user)) as client, make_client(cookie=cookie) as other:
            await User.objects.filter(pk=user.pk).aupdate(is_active=False)
            assert await client.receive() == {"type": "disconnect", "reason": "remote", "reconnect": True}
            await User.objects.filter(pk=bob.pk).aupdate(is_active=False)
            assert await other.receive() == {"type": "disconnect", "reason": "remote", "reconnect": True}


def namespace(scope: Any = None) -> str:
    """Return the tenant in the query of a handshake or, without a scope, the tenant of the running code."""
    return current["tenant"] if scope is None else scope["query_string"].decode().rpartition("tenant=")[2]


current = {"tenant": "a"}


class TestNamespaces:
    @pytest.fixture(autouse=True)
    def _namespaces(self, token_settings: None, settings: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "NAMESPACE": f"{__name__}.namespace"}

    async def test_a_token_is_valid_for_the_namespace_in_which_it_was_made(self, user: Any) -> None:
        """User 1 of one tenant must not become user 1 of another tenant."""
        token = cable_token(user)
        async with make_client(f"{token}&tenant=a") as client:
            assert client.welcome["type"] == WELCOME
        assert await first_frame(make_client(f"{token}&tenant=b")) == REFUSED
        assert await first_frame(make_client(f"{sign(ext={'user': user.pk})}&tenant=a")) == REFUSED

    @pytest.mark.parametrize("claim", [None, 1, True, ["None"], {}])
    async def test_a_claim_that_is_not_a_string_names_no_tenant(self, user: Any, claim: Any) -> None:
        """As strings, `None` and 1 would name the tenants "None" and "1"."""
        token = sign(ext={"user": user.pk}, namespace=claim)
        assert await first_frame(make_client(f"{token}&tenant={claim}")) == REFUSED
        without = await first_frame(make_client(f"{token}&tenant="))
        assert without["type"] == WELCOME if claim is None else without == REFUSED

    async def test_the_claim_is_ignored_without_the_setting(self, settings: Any, user: Any) -> None:
        settings.RELIABLE_CABLE = {key: each for key, each in settings.RELIABLE_CABLE.items() if key != "NAMESPACE"}
        async with make_client(sign(ext={"user": user.pk}, namespace={"id": 7})) as client:
            assert client.welcome["type"] == WELCOME


async def test_the_test_kit_connects_a_given_user_although_tokens_are_required(settings: Any, user: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_REQUIRED": True}
    with isolated_cable():
        async with CableCommunicator(CableAuthMiddlewareStack(TokenConsumer.as_asgi()), user=user):
            assert TokenConsumer.seen[0] == user
