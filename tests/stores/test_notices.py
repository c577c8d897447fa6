"""The text of notifications: every event arrives unchanged or causes a poll, and each payload has a limited size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.conf import CableSettings
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.database.notify import MAX_PAYLOAD
from reliable_cable.stores.streams.base import Advanced, Published, Transient
from reliable_cable.stores.streams.model_notices import (
    MAX_PAYLOADS,
    UNREADABLE,
    Moved,
    Notice,
    NoticeCodec,
    NoticedEvent,
    StoredTransient,
)

#: Text that PostgreSQL can store. It refuses NUL and surrogates.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
#: Text whose size is about that of a payload.
large = st.builds(lambda part, count: part * count, st.sampled_from(["x", "ä", "😀", '"', "\n"]), st.integers(0, 9000))
positions = st.builds(StreamPosition, text, st.integers(1, 2**63 - 1))
entries = st.builds(Entry, st.integers(1, 2**63 - 1), text | large, text)
transients = st.builds(Transient, text, text | large, text, whisper=st.booleans())
events = st.one_of(
    st.builds(Published, text, text, entries),
    st.builds(Moved, text, positions),
    st.builds(Advanced, text),
    st.builds(StoredTransient, st.integers(1, 2**63 - 1), transients),
)


@pytest.fixture(scope="module")
def codec() -> NoticeCodec:
    return NoticeCodec(CableSettings(secret="a"))


def decoded(codec: NoticeCodec, payloads: Sequence[str]) -> tuple[list[NoticedEvent], bool]:
    """Return the events of all payloads, and whether one of them asks for a poll."""
    notices = [codec.decode(payload) for payload in payloads]
    assert {notice.origin for notice in notices} <= {"here.1"}
    return [event for notice in notices for event in notice.events], any(notice.look for notice in notices)


def is_found(event: NoticedEvent, arrived: Sequence[NoticedEvent], look: bool) -> bool:
    """Return whether a receiver finds an event: as it is, by reading its stream, or by a poll."""
    if event in arrived:
        return True
    if isinstance(event, Published) and len(event.entry.data.encode()) > MAX_PAYLOAD - 1000:
        return Moved(event.stream, event.position) in arrived
    return look


@given(st.lists(events, max_size=8, unique=True), st.booleans())
def test_events_arrive_unchanged_and_in_order_or_cause_a_read(
    codec: NoticeCodec, sent: list[NoticedEvent], look: bool
) -> None:
    payloads = codec.encode(Notice("here.1", sent, look))
    assert all(len(payload.encode()) <= MAX_PAYLOAD for payload in payloads)
    arrived, looks = decoded(codec, payloads)
    assert looks or not look
    assert all(is_found(event, arrived, looks) for event in sent)
    order = [sent.index(event) for event in arrived if event in sent]
    assert order == sorted(order)


def test_a_message_is_sent_as_long_as_it_fits(codec: NoticeCodec) -> None:
    def kind_of(size: int) -> type:
        (payload,) = codec.encode(Notice("here.1", [Published("a", "epoch", Entry(1, "x" * size, ""))]))
        assert len(payload.encode()) <= MAX_PAYLOAD
        return type(codec.decode(payload).events[0])

    sizes = range(MAX_PAYLOAD - 200, MAX_PAYLOAD)
    kinds = [kind_of(size) for size in sizes]
    assert set(kinds) == {Published, Moved}
    assert kinds == sorted(kinds, key=lambda kind: kind is Moved)


def test_too_many_messages_are_announced_by_the_newest_position_of_each_stream(codec: NoticeCodec) -> None:
    sent = [Published(f"s{number % 3}", "e", Entry(number, "x" * 1000, "")) for number in range(1, 1000)]
    payloads = codec.encode(Notice("here.1", [*sent, StoredTransient(1, Transient("s0", "t"))]))
    arrived, look = decoded(codec, payloads)
    assert {*arrived} == {Moved(f"s{number % 3}", StreamPosition("e", number)) for number in (997, 998, 999)}
    assert look


def test_too_many_streams_cause_a_poll(codec: NoticeCodec) -> None:
    sent = [Published(f"{'s' * 100}{number}", "e", Entry(1, "1", "")) for number in range(80 * MAX_PAYLOADS)]
    (payload,) = codec.encode(Notice("here.1", sent))
    assert codec.decode(payload) == Notice("here.1", [], look=True)


def test_nothing_is_sent_if_there_is_nothing_to_tell(codec: NoticeCodec) -> None:
    assert codec.encode(Notice("here.1")) == []


@given(st.lists(events, min_size=1, max_size=3), st.data())
def test_a_changed_payload_causes_a_poll(codec: NoticeCodec, sent: list[NoticedEvent], data: Any) -> None:
    payload = codec.encode(Notice("here.1", sent))[0]
    place = data.draw(st.integers(0, len(payload) - 1))
    changed = payload[:place] + ("0" if payload[place] != "0" else "1") + payload[place + 1 :]
    assert codec.decode(changed) == UNREADABLE


@given(st.text())
def test_any_other_text_causes_a_poll(codec: NoticeCodec, payload: str) -> None:
    assert codec.decode(payload) == UNREADABLE


def test_a_payload_of_another_secret_causes_a_poll(codec: NoticeCodec) -> None:
    (payload,) = NoticeCodec(CableSettings(secret="b")).encode(Notice("here.1", [Advanced("a")]))
    assert codec.decode(payload) == UNREADABLE


@pytest.mark.parametrize(
    ("head", "events"),
    [
        (["x", [["a", "s"], ["new", "s", 3], ["p", "s", "e", 1, "", 3]]], [Advanced("s")]),
        (["x", [["p", "s", "e", 1, "", 3, "new"]]], []),
        (["x", [["a", "s"], 1]], [Advanced("s")]),
    ],
)
def test_an_unknown_item_of_a_newer_release_causes_a_poll(
    codec: NoticeCodec, head: list[Any], events: list[NoticedEvent]
) -> None:
    # The size of an unknown item's data is unknown, so the data of later items cannot be found.
    text = json.dumps(head) + "\nabc123"
    assert codec.decode(codec._sign(text) + text) == Notice("x", events, look=True)


@pytest.mark.parametrize("head", ["", "1", "[]", '["x"]', '["x", 1]', '["x", [["p", "s", "e", 1, "", "3"]]]', "{"])
def test_an_unknown_format_of_a_newer_release_causes_a_poll(codec: NoticeCodec, head: str) -> None:
    text = head + "\nabc"
    assert codec.decode(codec._sign(text) + text) == UNREADABLE
