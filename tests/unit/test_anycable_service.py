"""`RPCService` lets a consumer answer the calls of anycable-go. These tests make the calls themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.test import override_settings

from reliable_cable import CableConsumer, Channel, action, state
from reliable_cable.channel import registry
from reliable_cable.connection.anycable.client_logs import MAX_CLIENTS, ClientLogs
from reliable_cable.connection.anycable.service import RPCService, load_service
from reliable_cable.exceptions import ProtocolError
from reliable_cable.middleware import current_socket_id

ROOM = json.dumps({"channel": "RemoteRoom", "room": 7})
URL = "ws://testserver/cable?a=1"
ERRORS: list[BaseException] = []


class RemoteRoom(Channel, abstract=True):
    count = state(default=0)
    note = state(default="")

    def before_subscribe(self) -> bool:
        return "stranger" not in self.params

    def subscribed(self) -> None:
        if ERRORS:
            raise ERRORS[0]
        self.stream_from("first")
        self.stream_from("second", whisper=True)
        self.transmit({"user": str(self.user), "socket": current_socket_id()})

    def unsubscribed(self) -> None:
        LEFT.append((self.identifier, self.count))

    @action
    async def add(self, data: dict[str, Any]) -> int:
        self.count += data["n"]
        return self.count

    @action
    def move(self) -> None:
        self.stop_stream_from("second")
        self.stream_from("third", whisper=True)
        self.stream_from("fourth")
        self.stop_stream_from("fourth")

    @action
    def stop(self) -> None:
        self.stream_from("third")
        self.stop_all_streams()
        self.stream_from("fourth")

    @action
    def leave(self) -> None:
        self.transmit({"bye": True})
        self.reject()

    @action
    def fail(self) -> None:
        self.count = 100
        raise RuntimeError("as the test asked")

    @action
    def join(self) -> None:
        self.presence.join(1, {"name": "Ann"})

    @action
    def tenant(self) -> None:
        connection = self.connection
        self.transmit([connection.group.name, connection.key.hex, connection.number, connection.entered])

    def handle_error(self, error: Exception, handler: str) -> None:
        self.transmit({"failed": handler})


LEFT: list[tuple[str, int]] = []


class RemoteConsumer(CableConsumer):
    identified_by = ("user", "group", "key", "number")
    entered = 0
    group: Any = None
    key: UUID | None = None
    number: Any = None

    def connect(self) -> Any:
        if b"refuse" in self.scope["query_string"]:
            return False
        if b"outage" in self.scope["query_string"]:
            raise OperationalError("no database")
        if b"odd" in self.scope["query_string"]:
            self.number = 1.5
        if b"identified" in self.scope["query_string"]:
            self.group, self.key, self.number = Group.objects.get(), uuid4(), 7
        return None

    def disconnect(self, code: int) -> None:
        LEFT.append(("disconnect", code))

    @contextmanager
    def around_command(self) -> Iterator[None]:
        self.entered += 1
        yield


@pytest.fixture(autouse=True)
def _channel() -> Iterator[None]:
    registry["RemoteRoom"] = [RemoteRoom]
    LEFT.clear()
    ERRORS.clear()
    yield
    del registry["RemoteRoom"]


@pytest.fixture
def service() -> RPCService:
    return RPCService(RemoteConsumer.as_asgi())


async def command(service: RPCService, name: str, data: Any = None, istate: Any = None, **fields: Any) -> Any:
    values = {"command": name, "identifier": ROOM, "env": {"url": URL, "istate": istate or {}}, **fields}
    if data is not None:
        values["data"] = json.dumps(data)
    return await service.call("command", values, "the-sid")


async def perform(service: RPCService, action: str, istate: Any = None, **data: Any) -> Any:
    return await command(service, "message", {"action": action, **data}, istate)


def messages(answer: Any) -> list[Any]:
    return [json.loads(text) for text in answer.get("transmissions", [])]


async def test_connect_welcomes_the_client(service: RPCService) -> None:
    answer = await service.call("connect", {"env": {"url": URL}}, "the-sid")
    assert answer == {
        "status": 1,
        "identifiers": '{"group":null,"key":null,"number":null,"user":null}',
        "transmissions": ['{"type":"welcome","sid":"the-sid"}'],
    }


@pytest.mark.parametrize(("query", "status"), [("refuse", 2), ("outage", 0), ("odd", 0)])
async def test_connect_refuses_a_client_or_fails(service: RPCService, query: str, status: int) -> None:
    answer = await service.call("connect", {"env": {"url": f"ws://testserver/?{query}"}}, "")
    assert answer["status"] == status
    expected = [{"type": "disconnect", "reason": "unauthorized", "reconnect": False}] if status == 2 else []
    assert messages(answer) == expected


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://testserver"}, 1),
        ({"Origin": "http://elsewhere.example"}, 2),
        ({"cookie": "a=b"}, 2),
        ({"cookie": "a=b", "origin": "http://testserver"}, 1),
    ],
)
async def test_the_origin_of_a_client_is_checked(service: RPCService, headers: dict[str, str], status: int) -> None:
    answer = await service.call("connect", {"env": {"url": URL, "headers": headers}}, "")
    assert answer["status"] == status


async def test_subscribe_starts_streams_and_confirms_after_the_transmissions(service: RPCService) -> None:
    answer = await command(service, "subscribe")
    assert answer["status"] == 1
    assert answer["streams"] == ["first", "second"]
    assert answer["env"] == {"istate": {"$w": "second"}}
    assert messages(answer) == [
        {"identifier": ROOM, "message": {"user": "None", "socket": "the-sid"}},
        {"type": "confirm_subscription", "identifier": ROOM},
    ]


@pytest.mark.parametrize(
    "identifier",
    ['{"channel":"RemoteRoom","stranger":1}', '{"channel":"NoChannel"}', "{", '{"channel":"' + "x" * 3000 + '"}'],
    ids=lambda text: text[:20],
)
async def test_a_refused_subscription_is_rejected(service: RPCService, identifier: str) -> None:
    answer = await command(service, "subscribe", identifier=identifier)
    assert answer["status"] == 2
    assert messages(answer) == [{"type": "reject_subscription", "identifier": identifier}]
    assert "streams" not in answer


async def test_an_error_rejects_a_subscription_and_an_outage_disconnects_the_client(service: RPCService) -> None:
    failed = {"identifier": ROOM, "message": {"failed": "subscribed"}}
    ERRORS.append(RuntimeError("as the test asked"))
    answer = await command(service, "subscribe")
    assert messages(answer) == [failed, {"type": "reject_subscription", "identifier": ROOM}]
    ERRORS[0] = OperationalError("no database")
    answer = await command(service, "subscribe")
    assert messages(answer) == [failed]
    assert answer["disconnect"] is True


async def test_the_state_is_changed_only_where_it_differs(service: RPCService) -> None:
    answer = await perform(service, "add", {"count": "2", "note": '"x"', "$w": "second"}, n=3)
    assert answer["env"] == {"istate": {"count": "5"}}
    answer = await perform(service, "add", {"count": "2"}, n=0)
    assert "env" not in answer


async def test_a_call_is_answered(service: RPCService) -> None:
    answer = await command(service, "message", {"action": "add", "n": 1, "$call": "c1"})
    assert messages(answer) == [{"identifier": ROOM, "message": {"$answer": "c1", "result": 1}}]
    answer = await command(service, "message", {"action": "no", "$call": "c2"})
    assert messages(answer) == [{"identifier": ROOM, "message": {"$answer": "c2", "error": "unknown_action"}}]


async def test_streams_are_stopped_before_others_start(service: RPCService) -> None:
    answer = await perform(service, "move", {"$w": "second"})
    assert (answer["streams"], answer["stopped_streams"]) == (["third"], ["second", "fourth"])
    assert answer["env"]["istate"] == {"$w": "third"}
    answer = await perform(service, "stop", {"$w": "second"})
    assert (answer["streams"], answer["stop_streams"]) == (["fourth"], True)
    assert answer["env"]["istate"] == {"$w": ""}


async def test_a_failed_action_changes_nothing_and_runs_handle_error(service: RPCService) -> None:
    answer = await perform(service, "fail", {"count": "1"})
    assert answer == {
        "status": 1,
        "transmissions": [f'{{"identifier":{json.dumps(ROOM)},"message":{{"failed":"fail"}}}}'],
    }


async def test_reject_in_an_action_ends_the_subscription_once(service: RPCService) -> None:
    answer = await perform(service, "leave", {"count": "3"})
    assert [message.get("type") or message["message"] for message in messages(answer)] == [
        {"bye": True},
        {"type": "revoked", "reason": "revoked"},
        "reject_subscription",
    ]
    assert answer["stop_streams"] is True
    ended = answer["env"]["istate"]
    assert LEFT == [(ROOM, 3)]
    assert await perform(service, "add", ended, n=1) == {"status": 1}
    await command(service, "unsubscribe", istate=ended)
    assert LEFT == [(ROOM, 3)]


async def test_presence_needs_the_setting(service: RPCService, caplog: pytest.LogCaptureFixture) -> None:
    assert "presence" not in await perform(service, "join")
    assert "RPC_PRESENCE" in caplog.text
    with override_settings(RELIABLE_CABLE={"RPC_PRESENCE": True}):
        answer = await perform(service, "join")
        assert answer["presence"] == {"type": "join", "id": "1", "info": '{"name":"Ann"}'}
        answer = await command(service, "subscribe")
        assert answer["env"]["istate"] == {"$w": "second", "$p": "first"}


async def test_unsubscribed_and_disconnect_run_when_a_client_leaves(service: RPCService) -> None:
    other = json.dumps({"channel": "RemoteRoom", "room": 8})
    env = {"url": URL, "istate": {ROOM: json.dumps({"count": "4"})}}
    answer = await service.call("disconnect", {"identifiers": "{}", "subscriptions": [ROOM, other], "env": env}, "sid")
    assert answer == {"status": 1}
    assert LEFT == [(ROOM, 4), (other, 0), ("disconnect", 1006)]


@pytest.mark.django_db(transaction=True)
async def test_later_calls_have_the_identifiers_of_the_connection(service: RPCService) -> None:
    group = await Group.objects.acreate(name="team")
    user = await get_user_model().objects.acreate(username="ann")
    answer = await service.call("connect", {"env": {"url": "ws://testserver/?identified"}}, "")
    identifiers = {**json.loads(answer["identifiers"]), "user": f"auth.user:{user.pk}"}
    assert identifiers["group"] == f"auth.group:{group.pk}"
    env = {"url": URL, "cstate": answer["env"]["cstate"]}
    fields = {"connection_identifiers": json.dumps(identifiers), "env": env}
    (message,) = messages(await command(service, "message", {"action": "tenant"}, **fields))
    key = UUID(identifiers["key"].partition(":")[2])
    assert message["message"] == ["team", key.hex, 7, 1]
    (message, _) = messages(await command(service, "subscribe", **fields))
    assert message["message"]["user"] == "ann"
    await group.adelete()
    answer = await command(service, "message", {"action": "tenant"}, **fields)
    assert (answer["status"], answer["disconnect"]) == (2, True)


def tenant_of(scope: dict[str, Any] | None = None) -> str:
    """Return the namespace of a connection: the path of its URL."""
    return "" if scope is None else str(scope["path"]).strip("/")


@pytest.mark.parametrize(("path", "status"), [("acme", 1), ("other", 2)])
async def test_a_connection_stays_in_its_namespace(service: RPCService, path: str, status: int) -> None:
    with override_settings(RELIABLE_CABLE={"NAMESPACE": f"{__name__}.tenant_of"}):
        answer = await service.call("connect", {"env": {"url": "ws://testserver/acme"}}, "")
        identifiers = answer["identifiers"]
        assert json.loads(identifiers)["@namespace"] == "acme"
        env = {"url": f"ws://testserver/{path}"}
        answer = await command(service, "subscribe", connection_identifiers=identifiers, env=env)
        assert answer["status"] == status
        assert answer.get("streams", []) == (["acme\x1ffirst", "acme\x1fsecond"] if status == 1 else [])


@pytest.mark.parametrize("text", ['{"user":"auth.user:1"}', "{}", ""])
async def test_identifiers_without_a_namespace_are_refused_in_one(service: RPCService, text: str) -> None:
    """anycable-go reads such identifiers from a token, and does not know in which namespace the token is valid."""
    with override_settings(RELIABLE_CABLE={"NAMESPACE": f"{__name__}.tenant_of"}):
        fields = {
            "connection_identifiers": text.replace('"auth.user:1"', "null"),
            "env": {"url": "ws://testserver/acme"},
        }
        answer = await command(service, "subscribe", **fields)
    assert (answer["status"], answer["disconnect"]) == (2, True)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("connect", {"env": 7}),
        ("connect", {"env": {"url": 7}}),
        ("connect", {"env": {"url": "ws://[", "headers": {}}}),
        ("command", {"command": "dance", "identifier": ROOM}),
        ("command", {"command": "message", "identifier": ROOM, "data": "x" * 70_000}),
        ("command", {"command": "message", "identifier": ROOM, "data": "[]"}),
        ("command", {"command": "unsubscribe", "identifier": ""}),
        ("command", {"command": "subscribe", "identifier": ROOM, "connection_identifiers": "[]"}),
        ("command", {"command": "history", "identifier": ROOM}),
        ("disconnect", {"subscriptions": ROOM}),
        ("disconnect", {"subscriptions": 0}),
        ("disconnect", {"subscriptions": False}),
        ("disconnect", {"subscriptions": ""}),
        ("disconnect", {"subscriptions": {}}),
        ("connect", {"env": 0}),
        ("connect", {"env": {"headers": ""}}),
        ("connect", {"env": {"cstate": []}}),
        ("disconnect", {"identifiers": "\ud800"}),
    ],
)
async def test_an_invalid_call_runs_no_handler(service: RPCService, method: str, values: Any) -> None:
    with pytest.raises(ProtocolError):
        await service.call(method, values, "")
    assert LEFT == []


@pytest.mark.parametrize(
    ("path", "problem"),
    [(None, "is missing"), ("no.module", "cannot be imported"), ("uuid.UUID", "no subclass"), ("sys.path", "no ASGI")],
)
def test_a_wrong_consumer_is_reported(path: str | None, problem: str) -> None:
    with override_settings(RELIABLE_CABLE={} if path is None else {"RPC_CONSUMER": path}):
        with pytest.raises(ImproperlyConfigured, match=problem):
            load_service()


def test_each_client_has_a_log_of_its_own_and_their_number_is_limited() -> None:
    logs = ClientLogs()
    first = logs.get("first")
    assert logs.get("second") is not first
    for number in range(MAX_CLIENTS - 1):
        assert logs.get("first") is first
        logs.get(str(number))
    logs.get("first")
    logs.end("first")
    assert logs.get("first") is not first
