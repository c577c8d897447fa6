"""Commands posted to the HTTP endpoints in place of messages: `disconnect`."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest

from reliable_cable import disconnect
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.exceptions import BroadcastUncertain, StoreError
from reliable_cable.identity import identify
from reliable_cable.stores.engine import get_engine
from tests.unit.test_http import API_KEY, BROADCAST, BROADCAST_KEY, PUBLISH, configured, data, error, item, post

__all__ = ["configured"]


def command(payload: Any = None, name: Any = "disconnect", **more: Any) -> dict[str, Any]:
    return {"command": name, "payload": payload, **more}


def who(reconnect: Any = False, **identifiers: Any) -> dict[str, Any]:
    return {"identifier": json.dumps(identifiers), "reconnect": reconnect}


def said() -> list[Any]:
    """Return the control messages so far, without their times."""
    page = get_engine().streams.read(CONTROL_STREAM, after=0, limit=100)
    messages = [json.loads(entry.data) for entry in page.entries]
    return [{key: value for key, value in message.items() if key != "at"} for message in messages]


class TestCommands:
    @pytest.mark.parametrize(("path", "key"), [(BROADCAST, BROADCAST_KEY), (PUBLISH, API_KEY)])
    @pytest.mark.parametrize("reconnect", [False, True])
    def test_disconnect_closes_whoever_has_the_identifiers(self, path: str, key: str, reconnect: bool) -> None:
        response = post(command(who(user="auth.user:42", reconnect=reconnect)), path, key)
        assert (response.status_code, response.content) == (201, b"")
        assert said() == [{"revoke": {"user": "auth.user:42"}, "reconnect": reconnect}]
        assert get_engine().sessions.revoked([{"user": "auth.user:42"}]) != [0]

    def test_clients_stay_away_unless_it_says_otherwise(self) -> None:
        for payload in ({"identifier": '{"user":"str:ann"}'}, who(user="str:ann", reconnect=None)):
            assert post(command(payload)).status_code == 201
        assert [message["reconnect"] for message in said()] == [False, False]

    def test_it_names_what_disconnect_names(self) -> None:
        assert post(command(who(user=identify("żółw")))).status_code == 201
        disconnect(user="żółw")
        first, second = said()
        assert first == second

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            (command(who(user="str:ann"), "reconnect"), "no such command"),
            (command(who(user="str:ann"), None), "no such command"),
            (command(), 'no "payload" that is an object'),
            (command([]), 'no "payload" that is an object'),
            (command({}), 'no "identifier" that is a string'),
            (command({"identifier": {"user": "str:ann"}}), 'no "identifier" that is a string'),
            (command({"identifier": "ann"}), "not JSON"),
            (command({"identifier": "[" * 5000}), "not JSON"),
            (command({"identifier": "{}"}), "at least one name"),
            (command({"identifier": '["user"]'}), "at least one name"),
            (command(who(user=42)), "'user' that is neither"),
            (command(who(user="42")), "'user' that is neither"),
            (command(who(user="")), "'user' that is neither"),
            (command(who(user="str:")), "'user' that is neither"),
            (command(who(user="str:ann", reconnect="no")), '"reconnect" that is not true or false'),
            ([command(who(user="str:ann"))], 'Message 1 of 1 has no "stream"'),
        ],
    )
    def test_what_makes_no_sense(self, body: Any, problem: str) -> None:
        message = error(post(body), 422)
        assert problem in message
        assert '{"command": "disconnect", "payload": {"identifier": "' in message
        assert said() == []

    def test_names_that_no_connection_has(self) -> None:
        message = error(post(command(who(team="int:1"))), 422)
        assert "no connection is identified by 'team'" in message
        assert "'user'" in message
        assert said() == []

    def test_what_has_a_stream_is_a_message(self) -> None:
        assert post({**item(), "command": "disconnect"}).status_code == 201
        assert data() == [{"n": 1}]

    def test_a_store_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        body = command(who(user="str:ann"))
        with mock.patch.object(get_engine().sessions, "revoke", side_effect=StoreError("disk is full")):
            response = post(body)
        assert error(response, 503) == "No connection was closed: the store failed. Try again."
        with mock.patch.object(get_engine().streams, "append", side_effect=BroadcastUncertain("lost")):
            response = post(body)
        assert "is unknown" in error(response, 503)
        assert response.json()["stored"] is None
        assert "disk is full" in caplog.text
