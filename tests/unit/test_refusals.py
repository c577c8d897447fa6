"""If a handler raises an error that refuses a request, the client is told, and one line is logged."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404
from django.test import override_settings

from reliable_cable import CableConsumer, Channel, action
from reliable_cable.channel import registry
from reliable_cable.client_log import INTERVAL, MAX_LINES, handshake_log
from reliable_cable.exceptions import MissingParam
from reliable_cable.stores.engine import get_engine

from .wire import Client, Communicator, identifier, leave_session

REFUSALS = {
    "missing": "MissingParam('key')",
    "permission": "PermissionDenied('not yours')",
    "not found": "Http404('no room')",
    "invalid": "ValidationError(['not a\\nnumber'])",
    "no object": "DoesNotExist('User matching query does not exist.')",
}
ERRORS = ["key", "bug"]


def refuse(params: dict[str, Any], how: str | None) -> None:
    match how:
        case "missing":
            params["key"]
        case "permission":
            raise PermissionDenied("not yours")
        case "not found":
            raise Http404("no room")
        case "invalid":
            raise ValidationError("not a\nnumber")
        case "no object":
            raise User.DoesNotExist("User matching query does not exist.")
        case "key":
            params["nested"]["key"]
        case "bug":
            raise ValueError("a bug")


class Room(Channel, abstract=True):
    def _refuse_in(self, handler: str) -> None:
        if self.params.get("in") == handler:
            refuse(self.params, self.params["how"])

    def before_subscribe(self) -> None:
        self._refuse_in("before_subscribe")

    async def subscribed(self) -> None:
        self._refuse_in("subscribed")
        self.stream_from("room", presence=True)

    def unsubscribed(self) -> None:
        self._refuse_in("unsubscribed")

    def before_action(self, action: str, data: Any) -> None:
        self._refuse_in("before_action")

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the protocol's name
        self._refuse_in("authorize_presence")
        return True

    @action
    def speak(self) -> None:
        self.transmit("this is dropped")
        self._refuse_in("speak")


class Explaining(Room, abstract=True):
    """Tells its client why something was refused."""

    def handle_error(self, error: Exception, handler: str) -> None:
        self.transmit({"error": type(error).__name__, "in": handler})


class Guarded(CableConsumer):
    async def connect(self) -> None:
        refuse(Channel(None).params, self.scope["how"])


@pytest.fixture(autouse=True)
def _rooms(settings: Any, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    registry.update({"Room": [Room], "Explaining": [Explaining]})
    caplog.set_level(logging.INFO, "reliable_cable")
    yield
    del registry["Room"], registry["Explaining"]


def room(where: str, how: str, channel: str = "Room") -> str:
    return identifier(channel, **{"in": where, "how": how, "nested": {}})


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    assert not any(record.exc_info for record in caplog.records)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


async def answers(client: Client) -> list[Any]:
    """Return the frames that the client's commands have caused, up to the answer to one more command."""
    await client.send("subscribe", identifier("Room"))
    frames = []
    while (frame := await client.receive()) != {"type": "confirm_subscription", "identifier": identifier("Room")}:
        frames.append(frame)
    return frames


@pytest.mark.parametrize("how", REFUSALS)
class TestRefusals:
    @pytest.mark.parametrize("handler", ["before_subscribe", "subscribed"])
    async def test_a_refused_subscription_is_rejected(
        self, handler: str, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Client() as client:
            await client.send("subscribe", room(handler, how))
            assert await answers(client) == [{"type": "reject_subscription", "identifier": room(handler, how)}]
        assert logged(caplog) == [("INFO", f"Room: subscribed refused its client: {REFUSALS[how]}")]

    @pytest.mark.parametrize("handler", ["before_action", "speak"])
    async def test_a_refused_action_has_no_effect_and_no_answer(
        self, handler: str, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Client() as client:
            await client.subscribe(room(handler, how))
            await client.perform(room(handler, how), "speak")
            assert await answers(client) == []
        assert logged(caplog) == [("INFO", f"Room: speak refused its client: {REFUSALS[how]}")]

    async def test_a_refused_member_does_not_join(self, how: str, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            await client.send("subscribe", room("authorize_presence", how), presence={"id": "ann"})
            assert [frame["type"] for frame in await answers(client)] == ["confirm_subscription"]
            assert get_engine().presence.info("room").total == 0
        expected = f"A join was refused: Room.authorize_presence() raised {REFUSALS[how]}"
        assert logged(caplog) == [("INFO", expected)]

    async def test_a_refused_subscription_is_not_restored(
        self, how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sid = await leave_session(Client(), room("later", how))
        monkeypatch.setattr(Room, "before_subscribe", lambda channel: refuse(channel.params, how))
        async with Client(sid=sid) as client:
            assert client.welcome["restored_ids"] == []
        assert ("INFO", f"Room: subscribed refused its client: {REFUSALS[how]}") in logged(caplog)

    @override_settings(DEBUG=True)
    async def test_stock_logging_shows_refusals_while_debug_is_on(
        self, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Client() as client:
            await client.send("subscribe", room("subscribed", how))
            await answers(client)
        assert logged(caplog) == [("WARNING", f"Room: subscribed refused its client: {REFUSALS[how]}")]
        assert caplog.records[0].filename == "commands.py"

    async def test_handle_error_can_tell_the_client_why(self, how: str) -> None:
        async with Client() as client:
            await client.subscribe(room("speak", how, "Explaining"))
            await client.perform(room("speak", how, "Explaining"), "speak")
            error = REFUSALS[how].partition("(")[0]
            assert (await client.receive())["message"] == {"error": error, "in": "speak"}

    async def test_a_client_that_connect_refuses_does_not_reconnect(
        self, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = Client(consumer=Guarded, scope={"how": how})
        await client.communicator.connect()
        assert await client.receive() == {"type": "disconnect", "reason": "unauthorized", "reconnect": False}
        assert (await client.communicator.receive_output(5))["type"] == "websocket.close"
        assert logged(caplog) == [("INFO", f"Guarded.connect refused its client: {REFUSALS[how]}")]


async def test_an_unknown_channel_is_logged_with_the_known_ones(caplog: pytest.LogCaptureFixture) -> None:
    async with Client() as client:
        await client.send("subscribe", identifier("Rooom"))
        await answers(client)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("There is no channel 'Rooom'. The modules `cable` of the apps define: ")
    assert {"Explaining", "Room"} <= set(message.partition(": ")[2].rstrip(".").split(", "))
    assert "$pubsub" not in message


@pytest.mark.parametrize("offered", [[], ["soap"], ["actioncable-unsupported", "anycable-token.secret"]])
async def test_a_client_without_a_supported_subprotocol_is_refused_with_a_reason_in_the_log(
    offered: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    communicator = Communicator(CableConsumer.as_asgi(), "/cable", subprotocols=offered)
    connected, _ = await communicator.connect()
    assert not connected
    ((level, message),) = logged(caplog)
    assert level == "WARNING"
    assert "none of the subprotocols actioncable-v1-ext-json, actioncable-v1-json" in message
    assert "secret" not in message


async def test_of_many_refused_handshakes_the_number_is_logged_after_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect() -> None:
        await Client(consumer=Guarded, scope={"how": "permission"}).communicator.connect()

    for _ in range(MAX_LINES + 10):
        await connect()
    assert len(caplog.messages) == MAX_LINES
    now = time.monotonic()
    monkeypatch.setattr(handshake_log, "_clock", lambda: now + INTERVAL)
    await connect()
    assert caplog.messages[MAX_LINES] == "10 more log lines about handshakes were omitted."
    assert len(caplog.messages) == MAX_LINES + 2


class TestErrors:
    @pytest.mark.parametrize("how", ERRORS)
    @pytest.mark.parametrize("handler", ["subscribed", "speak"])
    async def test_other_exceptions_are_logged_with_their_traceback(
        self, handler: str, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Client() as client:
            await client.send("subscribe", room(handler, how))
            await client.perform(room(handler, how), "speak")
            await answers(client)
        (record,) = caplog.records
        assert (record.levelname, record.getMessage()) == ("ERROR", f"Room: {handler} failed.")
        assert record.exc_info

    async def test_so_is_every_exception_of_unsubscribed(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            await client.subscribe(room("unsubscribed", "no object"))
        (record,) = caplog.records
        assert (record.levelname, record.getMessage()) == ("ERROR", "Room: unsubscribed failed.")

    async def test_an_exception_of_connect_ends_the_handshake(self) -> None:
        client = Client(consumer=Guarded, scope={"how": "bug"})
        with pytest.raises(ValueError, match="a bug"):
            await client.communicator.connect()


class TestParams:
    def test_only_a_missing_param_raises_the_error(self) -> None:
        params = Channel(None, {"room": {}}).params
        with pytest.raises(MissingParam, match="'id'"):
            params["id"]
        with pytest.raises(KeyError):
            params["id"]
        with pytest.raises(KeyError) as caught:
            params["room"]["id"]
        assert not isinstance(caught.value, MissingParam)

    def test_params_are_a_dict(self) -> None:
        params = Channel(None, {"room": 1}).params
        assert params == {"room": 1}
        assert isinstance(params, dict)
        assert params.get("id") is None
        assert "id" not in params
        assert {**params} == {"room": 1}


def test_a_project_without_the_app_gets_an_error_that_names_the_setting() -> None:
    program = """
import django
from django.conf import settings

settings.configure(INSTALLED_APPS=[])
django.setup()

from reliable_cable import CableConsumer

CableConsumer.as_asgi()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ImproperlyConfigured: 'reliable_cable' is not in INSTALLED_APPS" in result.stderr
