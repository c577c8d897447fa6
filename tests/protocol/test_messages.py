"""Tests of the exact messages that the server sends."""

from __future__ import annotations

import json

import pytest

from reliable_cable.protocol import messages
from reliable_cable.protocol.constants import DisconnectReason, MessageType, Subprotocol, negotiate

IDENTIFIER = '{"channel":"C","q":"\\"é"}'


def test_welcome() -> None:
    assert json.loads(messages.welcome("S")) == {"type": "welcome", "sid": "S"}
    assert json.loads(messages.welcome("S", [])) == {
        "type": "welcome",
        "sid": "S",
        "restored": True,
        "restored_ids": [],
    }


def test_ping_and_pong() -> None:
    assert messages.ping(17.9) == '{"type":"ping","message":17}'
    assert messages.pong() == '{"type":"pong"}'


def test_acknowledgements_echo_the_identifier() -> None:
    text = messages.acknowledgement(MessageType.REJECT_HISTORY, IDENTIFIER)
    assert json.loads(text) == {"type": "reject_history", "identifier": IDENTIFIER}


def test_a_broadcast_has_its_position_and_its_unchanged_payload() -> None:
    encode = messages.broadcast_encoder(IDENTIFIER, "chat/1", "E")
    text = encode(5, '{"a":"é"}')
    assert json.loads(text) == {
        "identifier": IDENTIFIER,
        "message": {"a": "é"},
        "stream_id": "chat/1",
        "epoch": "E",
        "offset": 5,
    }
    assert '"message":{"a":"é"}' in text


def test_a_transmission_has_no_position() -> None:
    assert json.loads(messages.transmission("I", "[1]")) == {"identifier": "I", "message": [1]}


def test_presence() -> None:
    def sent(message: str) -> object:
        frame = json.loads(messages.presence_event("I", message))
        assert frame["type"] == "presence"
        assert frame["identifier"] == "I"
        return frame["message"]

    assert sent(messages.presence_join("1", {"n": 1})) == {"type": "join", "id": "1", "info": {"n": 1}}
    assert sent(messages.presence_leave("1")) == {"type": "leave", "id": "1"}
    assert sent(messages.presence_info(1, [("1", None)])) == {
        "type": "info",
        "total": 1,
        "records": [{"id": "1", "info": None}],
    }
    assert sent(messages.presence_info(3, None)) == {"type": "info", "total": 3}
    assert sent(messages.presence_error()) == {"type": "error"}


@pytest.mark.parametrize("reason", DisconnectReason)
def test_a_disconnect_always_has_the_field_reconnect(reason: DisconnectReason) -> None:
    assert json.loads(messages.disconnect(reason, reconnect=False)) == {
        "type": "disconnect",
        "reason": str(reason),
        "reconnect": False,
    }


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["actioncable-v1-json", "actioncable-v1-ext-json"], Subprotocol.EXTENDED_JSON),
        (["actioncable-unsupported", "actioncable-v1-json"], Subprotocol.BASE_JSON),
        (["graphql-ws"], None),
        ([], None),
    ],
)
def test_the_preferred_common_subprotocol_is_chosen(offered: list[str], chosen: Subprotocol | None) -> None:
    assert negotiate(offered) is chosen
