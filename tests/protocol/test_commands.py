"""Tests of parsing commands: history requests are parsed leniently, and other invalid input raises an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.exceptions import ProtocolError
from reliable_cable.protocol.commands import (
    History,
    Join,
    Leave,
    Perform,
    Ping,
    Pong,
    Presence,
    PresenceClaim,
    Subscribe,
    UnansweredSubscribeError,
    Unsubscribe,
    Whisper,
    parse,
    parse_identifier,
)
from reliable_cable.protocol.positions import HistoryRequest, StreamPosition

from .test_nesting import nested


def parse_frame(**frame: Any) -> Any:
    return parse(json.dumps(frame))


class TestCommands:
    def test_every_command_is_parsed(self) -> None:
        assert parse_frame(command="subscribe", identifier="I") == Subscribe("I")
        assert parse_frame(command="unsubscribe", identifier="I") == Unsubscribe("I")
        assert parse_frame(command="message", identifier="I", data='{"action":"a"}') == Perform("I", {"action": "a"})
        call = parse_frame(command="message", identifier="I", data='{"action":"a","$call":"1"}')
        assert call == Perform("I", {"action": "a"}, "1")
        assert parse_frame(command="history", identifier="I") == History("I", HistoryRequest())
        assert parse_frame(command="whisper", identifier="I", data={"a": 1}) == Whisper("I", '{"a":1}')
        assert parse_frame(command="join", identifier="I", presence={"id": 42, "info": 1}) == Join(
            "I", PresenceClaim("42", 1)
        )
        assert parse_frame(command="leave", identifier="I") == Leave("I")
        assert parse_frame(command="leave", identifier="I", presence={"id": "1"}) == Leave("I")
        assert parse_frame(command="presence", identifier="I") == Presence("I")
        assert parse_frame(command="presence", identifier="I", data={"return_records": False}) == Presence("I", False)
        assert parse_frame(command="ping") == Ping()
        assert parse_frame(command="pong") == Pong()

    @pytest.mark.parametrize("space", [" ", "\n", "\r\n", "\t"])
    def test_surrounding_white_space_is_ignored(self, space: str) -> None:
        assert parse(f'{space}{{"command":"ping"}}{space}') == Ping()
        assert parse_identifier(f'{space}{{"channel":"X"}}{space}') == ("X", {})

    def test_the_identifier_is_not_changed(self) -> None:
        identifier = '{ "channel" :"C","é":"\\u00e9"}'
        assert parse_frame(command="unsubscribe", identifier=identifier).identifier == identifier

    def test_a_subscribe_may_have_history_and_presence(self) -> None:
        frame = parse_frame(
            command="subscribe",
            identifier="I",
            history={"since": 17, "streams": {"s": {"epoch": "e", "offset": 5}}},
            presence={"id": "7"},
        )
        assert frame == Subscribe("I", HistoryRequest(17, {"s": StreamPosition("e", 5)}), PresenceClaim("7"))

    @pytest.mark.parametrize(
        ("history", "expected"),
        [
            ({"since": False, "streams": {}}, HistoryRequest()),
            ({"streams": {}, "since": 3.5}, HistoryRequest(3.5)),
            ({"since": 0}, HistoryRequest(0)),
            ({"since": -1}, HistoryRequest()),
            ({}, HistoryRequest()),
            ({"since": "x", "streams": []}, HistoryRequest()),
            ({"streams": {"s": {"epoch": "e"}, "t": 4, "u": {"epoch": 1, "offset": 1}}}, HistoryRequest()),
            ({"streams": {"s": {"epoch": "e", "offset": -3}}}, HistoryRequest(None, {"s": StreamPosition("e", 0)})),
        ],
    )
    def test_invalid_fields_of_a_history_request_are_ignored(self, history: Any, expected: HistoryRequest) -> None:
        assert parse_frame(command="history", identifier="I", history=history).history == expected


class TestErrors:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "[]",
            "null",
            '{"command":"dance","identifier":"I"}',
            '{"command":["subscribe"],"identifier":"I"}',
            '{"command":"subscribe"}',
            '{"command":"subscribe","identifier":5}',
            '{"command":"message","identifier":"I","data":"x"}',
            '{"command":"message","identifier":"I","data":"[]"}',
            '{"command":"message","identifier":"I"}',
            '{"command":"join","identifier":"I"}',
            '{"command":"whisper","identifier":"I","data":NaN}',
            '{"command":"whisper","identifier":"I","data":1e999}',
            '{"command":"whisper","identifier":"I","data":"\\ud800"}',
            '{"command":"subscribe","identifier":"\\ud800"}',
            "[" * 100_000,
            "1" * 10_000,
        ],
    )
    def test_invalid_input_raises_an_error_with_a_reason(self, text: str) -> None:
        with pytest.raises(ProtocolError, match=r"\w+ \w+"):
            parse(text)

    def test_frames_data_and_identifiers_may_have_64_levels(self) -> None:
        parse('{"command":"whisper","identifier":"I","data":' + nested(63) + "}")
        parse_frame(command="message", identifier="I", data='{"action":"a","b":' + nested(63) + "}")
        parse_identifier('{"channel":"C","id":' + nested(63) + "}")
        for levels in (64, 1500, 9988):
            with pytest.raises(ProtocolError, match="the frame has more than 64 levels"):
                parse('{"command":"whisper","identifier":"I","data":' + nested(levels) + "}")
            with pytest.raises(ProtocolError, match="the data of 'message' has more than 64 levels"):
                parse_frame(command="message", identifier="I", data='{"action":"a","b":' + nested(levels) + "}")
            with pytest.raises(ProtocolError, match="the identifier has more than 64 levels"):
                parse_identifier('{"channel":"C","id":' + nested(levels) + "}")

    def test_escaped_brackets_in_a_frame_are_brackets_in_its_data(self) -> None:
        data = ('{"action":"a","b":' + nested(64) + "}").replace("[", "\\u005b")
        with pytest.raises(ProtocolError, match="the data of 'message' has more than 64 levels"):
            parse('{"command":"message","identifier":"I","data":"' + data.replace('"', '\\"') + '"}')

    def test_the_error_of_an_invalid_subscribe_has_its_identifier(self) -> None:
        with pytest.raises(UnansweredSubscribeError) as caught:
            parse('{"command":"subscribe","identifier":"I","presence":{"id":"1","info":1e999}}')
        assert caught.value.identifier == "I"

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
        )
    )
    def test_any_json_is_parsed_or_raises_a_protocol_error(self, value: Any) -> None:
        try:
            parse(json.dumps(value))
        except ProtocolError:
            return

    @given(
        st.sampled_from(["subscribe", "unsubscribe", "message", "history", "whisper", "join", "leave", "presence"]),
        st.dictionaries(
            st.sampled_from(["data", "history", "presence"]),
            st.recursive(
                st.none() | st.integers() | st.floats() | st.text(),
                lambda x: (
                    st.lists(x) | st.dictionaries(st.sampled_from(["since", "streams", "id", "info", "epoch", "s"]), x)
                ),
            ),
        ),
    )
    def test_any_body_of_a_command_is_parsed_or_raises_a_protocol_error(
        self, command: str, body: dict[str, Any]
    ) -> None:
        try:
            parse_frame(command=command, identifier="I", **body)
        except ProtocolError:
            return


class TestIdentifier:
    def test_an_identifier_has_a_channel_and_params(self) -> None:
        assert parse_identifier('{"channel":"C","room":1}') == ("C", {"room": 1})

    @pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"channel":""}', '{"channel":7}', "[" * 100_000])
    def test_an_invalid_identifier_raises_an_error(self, text: str) -> None:
        with pytest.raises(ProtocolError):
            parse_identifier(text)
