"""The command `disconnect`, which can be posted to the HTTP endpoints in place of a message."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.test.utils import isolate_apps

from reliable_cable import disconnect
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.exceptions import BroadcastUncertain, StoreError
from reliable_cable.identity import identify
from reliable_cable.stores.engine import get_engine
from tests.unit.http_fronts import Front
from tests.unit.test_http import API_KEY, BROADCAST, BROADCAST_KEY, PUBLISH, configured, data, error, http, item, post

__all__ = ["configured", "http"]


def command(payload: Any = None, name: Any = "disconnect", **more: Any) -> dict[str, Any]:
    return {"command": name, "payload": payload, **more}


def disconnect_payload(reconnect: Any = False, **identifiers: Any) -> dict[str, Any]:
    return {"identifier": json.dumps(identifiers), "reconnect": reconnect}


def control_messages() -> list[Any]:
    """Return the control messages that have been sent, without their times."""
    page = get_engine().streams.read(CONTROL_STREAM, after=0, limit=100)
    messages = [json.loads(entry.data) for entry in page.entries]
    return [{key: value for key, value in message.items() if key != "at"} for message in messages]


class TestCommands:
    @pytest.mark.parametrize(("path", "key"), [(BROADCAST, BROADCAST_KEY), (PUBLISH, API_KEY)])
    @pytest.mark.parametrize("reconnect", [False, True])
    def test_disconnect_closes_the_connections_with_these_identifiers(
        self, http: Front, path: str, key: str, reconnect: bool
    ) -> None:
        response = post(http, command(disconnect_payload(user="auth.user:42", reconnect=reconnect)), path, key)
        assert (response.status_code, response.content) == (201, b"")
        assert control_messages() == [{"revoke": {"user": "auth.user:42"}, "reconnect": reconnect}]
        assert get_engine().sessions.revoked([{"user": "auth.user:42"}]) != [0]

    def test_clients_do_not_reconnect_by_default(self, http: Front) -> None:
        for payload in ({"identifier": '{"user":"str:ann"}'}, disconnect_payload(user="str:ann", reconnect=None)):
            assert post(http, command(payload)).status_code == 201
        assert [message["reconnect"] for message in control_messages()] == [False, False]

    def test_the_command_has_the_same_effect_as_the_function(self, http: Front) -> None:
        assert post(http, command(disconnect_payload(user=identify("żółw")))).status_code == 201
        disconnect(user="żółw")
        first, second = control_messages()
        assert first == second

    def test_other_names_of_the_same_row_have_the_same_effect(self, http: Front) -> None:
        with isolate_apps("tests") as models:

            class Staff(get_user_model()):  # type: ignore[misc]
                class Meta:
                    app_label = "tests"
                    proxy = True

            class Account(get_user_model()):  # type: ignore[misc]
                class Meta:
                    app_label = "tests"

        with mock.patch("reliable_cable.identity.apps", models):
            for name in ("tests.Staff:42", "tests.account:42"):
                assert post(http, command(disconnect_payload(user=name))).status_code == 201
        for name in ("auth.User:42", "auth.user:042"):
            assert post(http, command(disconnect_payload(user=name))).status_code == 201
        assert [message["revoke"] for message in control_messages()] == [{"user": "auth.user:42"}] * 4

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            (command(disconnect_payload(user="str:ann"), "reconnect"), "There is no command"),
            (command(disconnect_payload(user="str:ann"), None), "There is no command"),
            (command(), 'no "payload" that is an object'),
            (command([]), 'no "payload" that is an object'),
            (command({}), 'no "identifier" that is a string'),
            (command({"identifier": {"user": "str:ann"}}), 'no "identifier" that is a string'),
            (command({"identifier": "ann"}), "not JSON"),
            (command({"identifier": "[" * 5000}), "more than 64 levels"),
            (command({"identifier": "{}"}), "at least one name"),
            (command({"identifier": '["user"]'}), "at least one name"),
            (command(disconnect_payload(user=42)), "'user' that is neither"),
            (command(disconnect_payload(user="42")), "'user' that is neither"),
            (command(disconnect_payload(user="")), "'user' that is neither"),
            (command(disconnect_payload(user="str:")), "'user' that is neither"),
            (command(disconnect_payload(user="int:42")), "'user' that is a primary key"),
            (command(disconnect_payload(user="auth.usr:42")), "the label 'auth.usr', and there is no such model"),
            (command(disconnect_payload(user="auth.a.b:42")), "the label 'auth.a.b', and there is no such model"),
            (command(disconnect_payload(user="auth.user:ann")), "a primary key that auth.user cannot have: “ann”"),
            (command(disconnect_payload(user="str:ann", reconnect="no")), '"reconnect" that is not true or false'),
            ([command(disconnect_payload(user="str:ann"))], 'Message 1 of 1 has no "stream"'),
        ],
    )
    def test_a_malformed_command_is_refused_with_an_example(self, http: Front, body: Any, problem: str) -> None:
        message = error(post(http, body), 422)
        assert problem in message
        assert '{"command": "disconnect", "payload": {"identifier": "' in message
        assert control_messages() == []

    def test_an_unknown_identifier_is_refused(self, http: Front) -> None:
        message = error(post(http, command(disconnect_payload(planet="int:1"))), 422)
        assert "no connection is identified by 'planet'" in message
        assert "'user'" in message
        assert control_messages() == []

    def test_an_object_with_a_stream_is_a_message(self, http: Front) -> None:
        assert post(http, {**item(), "command": "disconnect"}).status_code == 201
        assert data() == [{"n": 1}]

    def test_a_failing_store_is_reported_and_logged(self, http: Front, caplog: pytest.LogCaptureFixture) -> None:
        body = command(disconnect_payload(user="str:ann"))
        with mock.patch.object(get_engine().sessions, "revoke", side_effect=StoreError("disk is full")):
            response = post(http, body)
        assert error(response, 503) == "No connection was closed: the store failed. Try again."
        with mock.patch.object(get_engine().streams, "append", side_effect=BroadcastUncertain("lost")):
            response = post(http, body)
        assert "is unknown" in error(response, 503)
        assert response.json()["stored"] is None
        assert "disk is full" in caplog.text
