"""The tenants of a project, which the setting `NAMESPACE` names, do not reach each other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from django.contrib.admin import site
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_out
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import RequestFactory

from reliable_cable import (
    BroadcastError,
    Channel,
    InvalidStreamName,
    abroadcast,
    action,
    adisconnect,
    aforget,
    ahistory,
    aposition,
    arevoke,
    broadcast,
    checks,
    presence_for,
    signed_stream_name,
)
from reliable_cable.conf import get_settings
from reliable_cable.models import Stream
from reliable_cable.namespaces import current_namespace
from reliable_cable.signals import broadcast_failed, presence_joined, presence_left
from reliable_cable.stores.engine import get_engine
from tests.unit.test_control_bus import expect_disconnect
from tests.unit.wire import Client, identifier, leave_session, registered, until

#: The tenant of the running code, as a middleware of the project would set it.
tenant: ContextVar[Any] = ContextVar("tenant", default="")


def namespace(scope: dict[str, Any] | None = None) -> Any:
    """Return the tenant of a connection or of the running code."""
    return tenant.get() if scope is None else scope["tenant"]


@contextmanager
def within(name: Any) -> Iterator[None]:
    token = tenant.set(name)
    try:
        yield
    finally:
        tenant.reset(token)


class Room(Channel, abstract=True):
    async def subscribed(self) -> None:
        self.stream_for("lobby", whisper=True)

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the protocol's name
        return True

    @action
    async def say(self, data: dict[str, Any]) -> None:
        with within(data.get("within", "")):
            await self.abroadcast_to("lobby", {"said": data["text"]})

    @action
    def say_in_thread(self, data: dict[str, Any]) -> None:
        self.broadcast_to("lobby", {"said": data["text"]})

    @action
    async def stop(self) -> None:
        self.stop_stream_for("lobby")


ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {
        "ENGINE": "memory",
        "NAMESPACE": f"{__name__}.namespace",
        "PING_INTERVAL": 60,
        "PUBLIC_STREAMS": True,
        "STREAMS": {"brief:*": {"history_size": 2}},
    }
    with registered(Room=Room):
        yield


def client_of(name: str, user: Any = "ann", **options: Any) -> Client:
    """Return a client of a tenant."""
    return Client(scope={"user": user, "tenant": name}, **options)


@pytest.fixture
async def clients() -> AsyncIterator[dict[str, Client]]:
    """A client of Ann in each of two tenants, and one outside of all tenants, with a subscription each."""
    async with AsyncExitStack() as stack:
        opened = {name: await stack.enter_async_context(client_of(name)) for name in ("a", "b", "")}
        for client in opened.values():
            await client.subscribe(ROOM)
        yield opened


async def expect_only(clients: dict[str, Client], name: str, message: Any) -> None:
    """Expect that only the client of one tenant receives a message."""
    assert (await clients[name].receive())["message"] == message
    assert [await client.quiet() for client in clients.values()] == [True] * len(clients)


class TestStreams:
    @pytest.mark.parametrize("name", ["a", "b", ""])
    async def test_a_broadcast_reaches_the_subscribers_of_its_tenant(
        self, clients: dict[str, Client], name: str
    ) -> None:
        with within(name):
            await Room.abroadcast_to("lobby", "hello")
        await expect_only(clients, name, "hello")

    @pytest.mark.parametrize("action", ["say", "say_in_thread"])
    async def test_a_broadcast_of_a_handler_reaches_the_tenant_of_the_connection(
        self, clients: dict[str, Client], action: str
    ) -> None:
        await clients["a"].perform(ROOM, action, text="hello")
        await expect_only(clients, "a", {"said": "hello"})

    async def test_a_handler_in_the_context_of_another_tenant_cannot_broadcast(
        self, clients: dict[str, Client], caplog: pytest.LogCaptureFixture
    ) -> None:
        await clients["a"].perform(ROOM, "say", text="hello", within="b")
        assert await clients["a"].quiet()
        assert "returned 'b' in a handler of a connection with the namespace 'a'" in caplog.text
        await clients["a"].perform(ROOM, "say", text="hello", within="a")
        await expect_only(clients, "a", {"said": "hello"})

    async def test_a_handler_outside_of_all_tenants_can_broadcast_to_one(self, clients: dict[str, Client]) -> None:
        await clients[""].perform(ROOM, "say", text="hello", within="b")
        await expect_only(clients, "b", {"said": "hello"})

    async def test_a_whisper_stays_in_its_tenant(self, clients: dict[str, Client]) -> None:
        async with client_of("b") as other:
            await other.subscribe(ROOM)
            await clients["b"].send("whisper", ROOM, data={"typing": True})
            assert (await other.receive())["message"] == {"typing": True}
        assert [await client.quiet() for client in clients.values()] == [True] * 3

    async def test_a_handler_can_stop_the_stream_of_its_tenant(self, clients: dict[str, Client]) -> None:
        await clients["a"].perform(ROOM, "stop")
        assert await clients["a"].quiet()
        with within("a"):
            await Room.abroadcast_to("lobby", "hello")
        assert await clients["a"].quiet()

    async def test_each_tenant_has_its_own_history(self) -> None:
        for name in ("a", "b"):
            with within(name):
                await abroadcast("s", {"tenant": name})
        with within("a"):
            assert (await aposition("s")).offset == 1
            assert [entry.data for entry in await ahistory("s")] == [{"tenant": "a"}]
            await aforget("s")
            assert await ahistory("s") == []
        with within("b"):
            assert [entry.data for entry in await ahistory("s")] == [{"tenant": "b"}]
        assert await ahistory("s") == []

    async def test_the_patterns_of_streams_match_the_name_without_the_tenant(self) -> None:
        with within("a"):
            for number in range(5):
                await abroadcast("brief:1", {"n": number})
            assert len(await ahistory("brief:1")) == 2

    async def test_no_name_leads_into_a_tenant(self) -> None:
        with pytest.raises(InvalidStreamName):
            await abroadcast("a\x1fs", {})
        async with client_of("") as client:
            await client.send("subscribe", identifier("$pubsub", stream_name="a\x1fs"))
            assert (await client.receive())["type"] == "reject_subscription"

    async def test_a_name_has_at_most_255_characters_with_its_tenant(self) -> None:
        with within("a"):
            await abroadcast("x" * 253, {})
            with pytest.raises(InvalidStreamName, match="256 characters with its namespace 'a'"):
                await abroadcast("x" * 254, {})


class TestPubSub:
    @pytest.fixture(params=["signed", "public"])
    def params(self, request: pytest.FixtureRequest) -> dict[str, str]:
        """The params that name the stream `news` in tenant `a`."""
        with within("a"):
            return (
                {"signed_stream_name": signed_stream_name("news")}
                if request.param == "signed"
                else {"stream_name": "news"}
            )

    async def test_a_name_leads_to_the_stream_of_the_tenant(self, params: dict[str, str]) -> None:
        async with client_of("a") as client:
            await client.subscribe(identifier("$pubsub", **params))
            await abroadcast("news", "for nobody")
            with within("a"):
                await abroadcast("news", "for a")
            assert (await client.receive())["message"] == "for a"

    async def test_the_patterns_of_public_streams_match_the_name_without_the_tenant(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "PUBLIC_STREAMS": ["news:*"]}
        async with client_of("a") as client:
            await client.subscribe(identifier("$pubsub", stream_name="news:1"))
            await client.send("subscribe", identifier("$pubsub", stream_name="news"))
            assert (await client.receive())["type"] == "reject_subscription"
            with within("a"):
                await abroadcast("news:1", "for a")
            assert (await client.receive())["message"] == "for a"

    async def test_no_stream_of_a_channel_is_public_in_a_tenant(self) -> None:
        async with client_of("a") as client:
            await client.send("subscribe", identifier("$pubsub", stream_name=Room.broadcasting_for("lobby")))
            assert (await client.receive())["type"] == "reject_subscription"

    @pytest.mark.parametrize("name", ["b", ""])
    async def test_a_signed_name_is_rejected_in_another_tenant(self, name: str) -> None:
        with within("a"):
            signed = signed_stream_name("news")
        async with client_of(name) as client:
            await client.send("subscribe", identifier("$pubsub", signed_stream_name=signed))
            assert (await client.receive())["type"] == "reject_subscription"

    async def test_a_name_signed_outside_of_all_tenants_is_rejected_in_a_tenant(self) -> None:
        async with client_of("a") as client:
            await client.send("subscribe", identifier("$pubsub", signed_stream_name=signed_stream_name("news")))
            assert (await client.receive())["type"] == "reject_subscription"


class TestPresence:
    async def test_each_tenant_has_its_own_members(self, clients: dict[str, Client]) -> None:
        await clients["a"].send("join", ROOM, presence={"id": "ann"})
        assert (await clients["a"].receive())["message"]["id"] == "ann"
        stream = Room.broadcasting_for("lobby")
        with within("a"):
            members = presence_for(stream)
        assert members.stream == stream
        assert (await members.ainfo()).records == {"ann": None}
        with within("b"):
            assert await presence_for(stream).atotal() == 0
        assert await presence_for(stream).atotal() == 0
        assert [await client.quiet() for client in clients.values()] == [True] * 3

    async def test_the_signals_name_the_tenant_and_run_in_it(self, clients: dict[str, Client]) -> None:
        received: list[tuple[str, str, str]] = []

        def receive(sender: object, stream: str, namespace: str, **kwargs: Any) -> None:
            received.append((stream, namespace, current_namespace()))

        for signal in (presence_joined, presence_left):
            signal.connect(receive)
        try:
            for name in ("a", "b"):
                await clients[name].send("join", ROOM, presence={"id": "ann"})
            await clients["a"].send("leave", ROOM)
            await until(lambda: len(received) >= 3)
        finally:
            for signal in (presence_joined, presence_left):
                signal.disconnect(receive)
        assert sorted(received) == [("Room:lobby", name, name) for name in ("a", "a", "b")]


class TestConnections:
    @pytest.mark.parametrize("name", ["a", "b", ""])
    async def test_a_disconnect_closes_connections_of_its_tenant(self, clients: dict[str, Client], name: str) -> None:
        with within(name):
            await adisconnect(user="ann")
        await expect_disconnect(clients.pop(name), reconnect=False)
        assert [await client.quiet() for client in clients.values()] == [True] * 2

    @pytest.mark.parametrize("name", ["a", "b", ""])
    @pytest.mark.parametrize("identifiers", [{"user": "ann"}, {}], ids=["user", "everybody"])
    @pytest.mark.parametrize("scope", [{"stream": "Room:lobby"}, {"channel": Room}], ids=["stream", "channel"])
    async def test_a_revocation_ends_subscriptions_of_its_tenant(
        self, clients: dict[str, Client], scope: Any, identifiers: Any, name: str
    ) -> None:
        with within(name):
            await arevoke(**scope, **identifiers)
        assert (await clients.pop(name).receive())["message"]["type"] == "revoked"
        assert [await client.quiet() for client in clients.values()] == [True] * 2

    @pytest.mark.parametrize("name", ["a", "b", ""])
    @pytest.mark.parametrize("identifiers", [{"user": "ann"}, {}], ids=["user", "everybody"])
    @pytest.mark.parametrize("scope", [{"stream": "Room:lobby"}, {"channel": Room}], ids=["stream", "channel"])
    async def test_a_revocation_ends_subscriptions_of_clients_of_its_tenant_that_are_away(
        self, scope: Any, identifiers: Any, name: str
    ) -> None:
        sids = {each: await leave_session(client_of(each), ROOM) for each in ("a", "b", "")}
        with within(name):
            await arevoke(**scope, **identifiers)
        for each, sid in sids.items():
            async with client_of(each, sid=sid) as client:
                assert client.welcome["restored_ids"] == ([] if each == name else [ROOM])

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("name", ["a", "b", ""])
    def test_a_logout_revokes_the_sessions_of_its_tenant(self, name: str) -> None:
        # The tenants have tables of their own, so each of them has a user 1.
        user = get_user_model()(pk=1)
        with within(name):
            user_logged_out.send(type(user), request=RequestFactory().get("/"), user=user)
        identities = [{"user": "auth.user:1", **({"@namespace": each} if each else {})} for each in ("a", "b", "")]
        revoked = get_engine().sessions.revoked(identities)
        assert [at > 0 for at in revoked] == [name == each for each in ("a", "b", "")]

    @pytest.mark.parametrize("user", ["ann", None])
    async def test_a_session_can_be_restored_only_in_its_tenant(self, user: str | None) -> None:
        async with client_of("a", user) as client:
            await client.subscribe(ROOM)
        for name in ("b", ""):
            async with client_of(name, user, sid=client.sid) as other:
                assert not other.welcome.get("restored")
        async with client_of("a", user, sid=client.sid) as again:
            assert again.welcome["restored_ids"] == [ROOM]


@pytest.mark.django_db(transaction=True)
def test_the_failure_of_a_delayed_broadcast_names_the_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, str]] = []

    def receive(sender: object, stream: str, namespace: str, **kwargs: Any) -> None:
        received.append((stream, namespace))

    def fail(*args: Any) -> None:
        raise BroadcastError("down")

    broadcast_failed.connect(receive)
    try:
        monkeypatch.setattr(get_engine().streams, "append", fail)
        with within("a"), transaction.atomic():
            broadcast("s", {"n": 1})
    finally:
        broadcast_failed.disconnect(receive)
    assert received == [("s", "a")]


@pytest.mark.django_db(transaction=True)
def test_the_admin_shows_the_streams_of_the_tenant(settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "ENGINE": "database"}
    for name in ("a", "b", ""):
        with within(name):
            broadcast("s", {"tenant": name})
    admin, request = site.get_model_admin(Stream), RequestFactory().get("/")
    for name, names in (("a", ["a\x1fs"]), ("b", ["b\x1fs"]), ("", ["s"])):
        with within(name):
            assert list(admin.get_queryset(request).values_list("name", flat=True)) == names


class TestTheSetting:
    @pytest.mark.parametrize("value", [None, 1, "a\nb", "a\x1fb", "x" * 101])
    def test_what_cannot_be_a_namespace_is_an_error(self, value: Any) -> None:
        with within(value), pytest.raises(ImproperlyConfigured, match="NAMESPACE"):
            broadcast("s", {"n": 1})

    @pytest.mark.parametrize("path", ["no_such_module.namespace", f"{__name__}.missing", f"{__name__}.ROOM"])
    def test_a_path_that_names_no_callable_is_reported(self, settings: Any, path: str) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "NAMESPACE": path}
        (error,) = checks.check_settings()
        assert error.id == "reliable_cable.E001"
        assert "NAMESPACE" in str(error.msg)

    def test_names_stay_as_they_are_without_the_setting(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory"}
        with within("a"):
            broadcast("s", {"n": 1})
            assert json.loads(get_engine().streams.read("s", after=0, limit=1).entries[0].data) == {"n": 1}
        assert get_settings().namespace is None
