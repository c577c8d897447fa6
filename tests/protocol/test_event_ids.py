"""The ids of server-sent events, which contain the position of a reader in each of its streams, and stay short."""

from __future__ import annotations

import sys
from types import FrameType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reliable_cable.protocol.event_ids import MAX_STREAMS, digest, make_id, parse_id
from reliable_cable.protocol.positions import UNKNOWN_POSITION, StreamPosition

names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=255)
positions = st.builds(
    StreamPosition, st.text("0123456789abcdef", min_size=0, max_size=16), st.integers(0, 999_999_999_999)
)


@given(st.dictionaries(names, positions, min_size=1, max_size=20))
@example({"a/b*,#": StreamPosition("e", 1)})
@example({"*": StreamPosition("", 0)})
@example({"a ": StreamPosition("e", 1)})
def test_an_id_has_the_position_of_each_stream(found: dict[str, StreamPosition]) -> None:
    text = make_id(found, {})
    parsed = parse_id(text.strip(" "))  # as browsers send it
    assert {name: parsed[name] for name in found} == found
    assert "not in the id" not in parsed or "not in the id" in found
    if len(found) == 1 and not next(iter(found)).endswith(" "):
        [(name, position)] = found.items()
        assert text == f"{position.offset}/{position.epoch}/{name}"
    else:
        assert text.isascii(), "an id with several streams can be in every header"
    assert not set(text) & set("\r\n\0")


@given(st.dictionaries(names, positions, max_size=5), st.dictionaries(names, positions, max_size=5))
def test_positions_of_streams_that_are_not_open_yet_are_kept(
    found: dict[str, StreamPosition], former: dict[str, StreamPosition]
) -> None:
    parsed = parse_id(make_id(found, parse_id(make_id(former, {})).by_digest))
    assert dict(parsed.by_digest) == {digest(name): each for name, each in {**former, **found}.items()}


def test_the_longest_id_is_a_header_that_proxies_accept() -> None:
    found = {f"{number}" * 80: StreamPosition("0123456789abcdef", 10**9) for number in range(MAX_STREAMS)}
    assert len(make_id(found, {})) < 4200


def test_the_ids_of_further_events_compute_no_digests() -> None:
    found = {f"room {number}": StreamPosition("e", number) for number in range(MAX_STREAMS)}
    first = make_id(found, {})
    called: list[str] = []

    def record(frame: FrameType, event: str, function: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    sys.setprofile(record)
    try:
        assert make_id(found, {}) == first
    finally:
        sys.setprofile(None)
    assert "make_id" in called
    assert "digest" not in called


@given(st.text(max_size=100))
@example("1/e/")
@example("/e/s")
@example("*")
@example("*1/e/AAAAAAAA,")
@example("-1/e/s")
@example("٣/e/s")
@example("9" * 5000 + "/e/s")
@example("*" + "1/e/AAAAAAAA," * 1000)
def test_a_text_that_is_no_id_is_a_position_of_no_stream(text: str) -> None:
    parsed = parse_id(text)
    if not text:
        assert not parsed
    elif not parsed.by_digest:
        assert parsed["some stream"] == UNKNOWN_POSITION
        assert "some stream#0123456789abcdef01" not in parsed, "it must not seem to be the id of another subscription"
    with pytest.raises(KeyError):
        parse_id("1/e/s")["other"]
