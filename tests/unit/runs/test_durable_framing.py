"""Durable streams: offsets, entries, JSON values, and the rules for writers. These tests do no I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliable_cable.runs.durable import appending
from reliable_cable.runs.durable.appending import Append, Outcome, Producer, WriterState, decide
from reliable_cable.runs.durable.framing import (
    BodyTooLarge,
    InvalidBody,
    Piece,
    cut,
    data_event,
    is_text,
    join,
    media_type,
    pack,
    repack,
    split_json,
    unpack,
)
from reliable_cable.runs.durable.offsets import (
    ANY_GENERATION,
    ForeignOffset,
    InvalidOffset,
    format_offset,
    new_generation,
    parse_offset,
)

LIMIT = 1024
FEWER = settings(max_examples=40)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


# -- offsets ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_offsets_sort_as_positions_do(one: int, other: int) -> None:
    generation = new_generation()
    texts = [format_offset(generation, count) for count in (one, other)]
    assert (texts[0] < texts[1]) == (one < other)
    assert [parse_offset(text, generation) for text in texts] == [one, other]
    assert not set(texts[0]) & set(",&=?/ ")


@given(st.text())
def test_other_texts_are_no_offsets(text: str) -> None:
    with pytest.raises(InvalidOffset):
        parse_offset(text, new_generation())


def test_offsets_of_other_generations() -> None:
    generation = new_generation()
    assert generation != new_generation()
    assert parse_offset(format_offset(ANY_GENERATION, 0), generation) == 0
    for foreign in (format_offset(new_generation(), 0), format_offset(ANY_GENERATION, 1)):
        with pytest.raises(ForeignOffset):
            parse_offset(foreign, generation)


# -- entries ----------------------------------------------------------------------------------------------------------


bodies = st.binary(max_size=20).map(lambda part: part * 200) | st.text(max_size=9).map(lambda part: part.encode() * 99)


@given(bodies, st.sampled_from(["text/plain", "image/png"]))
def test_bytes_become_entries_and_bytes_again(body: bytes, content_type: str) -> None:
    entries = [{"n": number, **entry} for number, entry in enumerate(pack(body, content_type, LIMIT), start=1)]
    assert all(len(json.dumps(entry)) <= LIMIT for entry in entries)
    pieces = [piece for entry in entries if (piece := unpack(json.loads(json.dumps(entry))))]
    assert join(pieces, content_type) == body
    assert join([Piece(1, unpack({"n": 1, **repack(piece)}).data) for piece in pieces], content_type) == body  # type: ignore[union-attr]


@given(st.text(min_size=1, max_size=5).map(lambda text: text * 300))
def test_characters_are_not_split(text: str) -> None:
    for entry in pack(text.encode(), "text/plain", LIMIT):
        piece = unpack({"n": 1, **entry})
        assert piece is not None
        piece.data.decode()


@FEWER
@given(st.lists(json_values, max_size=5))
def test_json_values_keep_their_texts(values: list[Any]) -> None:
    texts = [json.dumps(value, ensure_ascii=False) for value in values]
    body = " ,\n".join(texts)
    assert split_json(f"[ {body} ] ".encode()) == texts
    text = json.dumps({"a": values}, indent=1)
    assert split_json(f"\n{text}\t".encode()) == [text]


@FEWER
@given(st.lists(json_values, min_size=1, max_size=8).map(lambda values: values * 5))
def test_json_values_become_entries_and_an_array_again(values: list[Any]) -> None:
    body = json.dumps(values).encode()
    try:
        entries = pack(body, "application/json; charset=utf-8", LIMIT)
    except BodyTooLarge:
        assert any(len(json.dumps(json.dumps(value))) > LIMIT - 300 for value in values)
        return
    assert all(len(json.dumps({"n": 10**6, **entry})) <= LIMIT for entry in entries)
    pieces = [piece for entry in entries if (piece := unpack({"n": 1, **entry}))]
    assert json.loads(join(pieces, "application/json")) == values


def test_numbers_keep_their_exact_form() -> None:
    body = b"[1.0, 1e400, -0, 12345678901234567890123, 1E2]"
    assert split_json(body) == ["1.0", "1e400", "-0", "12345678901234567890123", "1E2"]
    assert len(split_json(b"9" * 5000)) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[",
        b"[1,]",
        b"[1 2]",
        b"[,1]",
        b"1 2",
        b"{} x",
        b"NaN",
        b"[Infinity]",
        b"\xff",
        b"[" * 100_000,
        b"'a'",
    ],
)
def test_bodies_that_are_not_json(body: bytes) -> None:
    with pytest.raises(InvalidBody):
        split_json(body)


@pytest.mark.parametrize("entry", [None, 1, [], {}, {"n": "1"}, {"text": "a"}])
def test_what_was_not_packed(entry: Any) -> None:
    assert unpack(entry) is None


def test_cutting() -> None:
    assert cut(Piece(1, b"abc"), 2) == Piece(1, b"ab")
    assert cut(Piece(1, values=("1", "2")), 1) == Piece(1, values=("1",))
    with pytest.raises(InvalidBody):
        cut(Piece(1, b"abc"), 4)


@pytest.mark.parametrize(
    ("content_type", "found", "text"),
    [
        ("text/plain", "text/plain", True),
        ("Text/HTML; charset=x", "text/html", True),
        ("application/json", "application/json", True),
        ("application/problem+json", "application/problem+json", False),
        ("", "", False),
        ("text", "", False),
        ("a/b/c", "", False),
        ("a b/c", "", False),
    ],
)
def test_content_types(content_type: str, found: str, text: bool) -> None:
    assert media_type(content_type) == found
    assert is_text(content_type) == text


def test_events() -> None:
    assert data_event([Piece(1, b" a\r\n\r\nevent: x")], "text/plain") == (
        b"event: data\ndata:  a\ndata:\ndata:event: x\n\n"
    )
    assert data_event([Piece(1, b"\x00"), Piece(2, b"\x01")], "image/png") == b"event: data\ndata:AAE=\n\n"


# -- writers ----------------------------------------------------------------------------------------------------------


def post(**values: Any) -> Append:
    return Append(**{"has_data": True, "content_type": "text/plain", **values})


def test_sequences() -> None:
    state = WriterState("Text/Plain")
    assert decide(state, post(sequence="09")) is Outcome.ACCEPTED
    assert decide(state, post(sequence="10")) is Outcome.ACCEPTED
    assert decide(state, post()) is Outcome.ACCEPTED
    for old in ("10", "1", "09"):
        assert decide(state, post(sequence=old)) is Outcome.OLD_SEQUENCE
    assert decide(state, post(content_type="text/html")) is Outcome.OTHER_TYPE


@pytest.mark.parametrize(
    ("epoch", "sequence", "outcome"),
    [
        (1, 2, Outcome.ACCEPTED),
        (1, 1, Outcome.REPEATED),
        (1, 0, Outcome.REPEATED),
        (1, 3, Outcome.GAP),
        (0, 5, Outcome.OLD_EPOCH),
        (2, 0, Outcome.ACCEPTED),
        (2, 1, Outcome.EPOCH_WITHOUT_START),
    ],
)
def test_producers(epoch: int, sequence: int, outcome: Outcome) -> None:
    state = WriterState("text/plain", producers={"p": [1, 1]})
    before = dict(state.producers)
    assert decide(state, post(producer=Producer("p", epoch, sequence))) is outcome
    changed = {"p": [epoch, sequence]} if outcome is Outcome.ACCEPTED else before
    assert state.producers == changed


def test_new_producers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "MAX_PRODUCERS", 1)
    state = WriterState("text/plain")
    assert decide(state, post(producer=Producer("p", 7, 1))) is Outcome.GAP
    assert decide(state, post(producer=Producer("p", 7, 0))) is Outcome.ACCEPTED
    assert decide(state, post(producer=Producer("q", 0, 0))) is Outcome.TOO_MANY_PRODUCERS


def test_closed_streams() -> None:
    state = WriterState("text/plain")
    closing = post(close=True, producer=Producer("p", 1, 0))
    assert decide(state, closing) is Outcome.ACCEPTED
    assert decide(state, closing) is Outcome.REPEATED
    assert decide(state, post(producer=Producer("p", 0, 0))) is Outcome.OLD_EPOCH
    assert decide(state, post(producer=Producer("p", 1, 1))) is Outcome.CLOSED
    assert decide(state, post(content_type="text/html")) is Outcome.CLOSED
    assert decide(state, Append(has_data=False, close=True)) is Outcome.REPEATED
