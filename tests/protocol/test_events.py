"""Server-sent events: a browser reads each message as it was sent, whatever the message contains."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reliable_cable.protocol import messages
from reliable_cable.protocol.constants import DisconnectReason, MessageType
from reliable_cable.protocol.events import Event, FrameEvent, RawEvent, RawFrameEvent
from tests.support.event_reader import EventParser, ServerEvent

I = '{"channel":"A"}'  # noqa: E741 - as in the protocol
FORMS = (Event, RawEvent, FrameEvent, RawFrameEvent)
json_values = st.recursive(
    st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=5,
)


def read(event: Event) -> list[ServerEvent]:
    """Return the events that a browser reads from an encoded event."""
    assert event.wire.endswith(b"\n\n")
    parser = EventParser()
    # A browser also ends a line at a CR without LF.
    lines = event.wire.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [found for found in map(parser.feed, lines) if found is not None]


def lines_of(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@given(json_values)
@example("a\r\nb\rc\nd\n")
@example("\n")
@example(" leading space")
@example({"$event": "x\ny", "data": 1})
@example({"$event": "x"})
@example({"$event": 1, "data": 1})
@example({"$event": "reject_history", "data": 1})
@example({"$event": "disconnect", "data": "{}"})
@example({"$event": "error", "data": 1})
@example([{"$event": "x", "data": 1}])
def test_a_message_is_read_as_it_was_sent(value: object) -> None:
    data = messages.dumps(value)
    for form in (Event, RawEvent):
        for event in (form.broadcasts(I, "s/1", "e")(7, data), form.transmission(I, data)):
            [found] = read(event)
            assert found.type == "message"
            assert found.id == ("7/e/s/1" if event.stream_id else "")
            assert found.data == (lines_of(value) if isinstance(value, str) else data)
    for form in (FrameEvent, RawFrameEvent):
        event = form.broadcasts(I, "s/1", "e")(7, data)
        [found] = read(event)
        assert found.id == "7/e/s/1"
        assert found.data == messages.broadcast_encoder(I, "s/1", "e")(7, data)
        [found] = read(form.transmission(I, data))
        assert found.json == {"identifier": I, "message": value}


@pytest.mark.parametrize(("data", "expected"), [("<b>\n</b>", "<b>\n</b>"), ({"a": 1}, '{"a":1}'), ("", "")])
def test_a_message_can_set_the_type_of_its_event(data: object, expected: str) -> None:
    text = messages.dumps({"$event": "price", "data": data})
    assert read(Event.transmission(I, text)) == [ServerEvent("price", expected, "")]
    [found] = read(FrameEvent.transmission(I, text))
    assert (found.type, found.json["message"]) == ("message", json.loads(text))


def test_data_with_white_space_is_one_event() -> None:
    [found] = read(Event.transmission(I, '{"a":\n\n1}'))
    assert found.json == {"a": 1}


def test_frames_of_the_protocol_are_events_with_their_types() -> None:
    frames = {
        "welcome": messages.welcome("sid"),
        "ping": messages.ping(1.5),
        "pong": messages.pong(),
        "confirm_subscription": messages.acknowledgement(MessageType.CONFIRM_SUBSCRIPTION, I),
        "reject_subscription": messages.acknowledgement(MessageType.REJECT_SUBSCRIPTION, I),
        "confirm_history": messages.acknowledgement(MessageType.CONFIRM_HISTORY, I),
        "reject_history": messages.acknowledgement(MessageType.REJECT_HISTORY, I),
        "presence": messages.presence_event(I, messages.presence_leave("1")),
        "disconnect": messages.disconnect(DisconnectReason.REMOTE, reconnect=False),
    }
    for kind, text in frames.items():
        for form in (Event, FrameEvent):
            assert read(form.of(text)) == [ServerEvent(kind, text, "")]
            event = form.of(text)
            assert form.of(event) is event
        raw = RawEvent.of(text)
        shown = read(raw) if raw.shown else []
        never_hidden = ("reject_subscription", "reject_history", "disconnect")
        assert [event.type for event in shown] == ([kind] if kind in never_hidden else [])
    assert RawEvent.of(frames["ping"]).wire == b": ping\n\n"
    assert not RawEvent.of(frames["welcome"]).shown
    # The id of a hidden event is sent, although the event itself is not.
    assert RawEvent.of(frames["confirm_history"]).with_id("1/e/s").wire == b"id: 1/e/s\n\n"
    assert b"retry: 31536000000\n" in Event.of(frames["disconnect"]).wire
    assert b"retry" not in Event.of(messages.disconnect(DisconnectReason.SERVER_RESTART, reconnect=True)).wire


def test_an_id_is_added_without_encoding_the_event_again() -> None:
    event = Event.broadcasts(I, "s", "e")(1, '{"a":1}')
    assert event.wire == b'data: {"a":1}\nid: 1/e/s\n\n'
    assert event.with_id("*x").wire == b'data: {"a":1}\nid: *x\n\n'
    assert event.with_id("*x")._encode_with("y").startswith(b'data: {"a":1}\n')


def test_a_lone_surrogate_stops_no_other_message() -> None:
    [found] = read(Event.transmission(I, '"a\\ud800b"'))
    assert found.data == "a?b"
