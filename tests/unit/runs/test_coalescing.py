"""`Coalescer` joins the pieces of an answer, and decides when they are broadcast."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.runs.coalescing import Coalescer
from reliable_cable.runs.parts import Content

CALL = {"type": "tool-call", "id": "1", "name": "weather", "input": {}}


def test_the_first_text_is_due_at_once() -> None:
    coalescer = Coalescer(1)
    assert coalescer.due() == math.inf
    assert coalescer.add("a")
    assert coalescer.due() == -math.inf


def test_later_texts_are_joined_for_a_time() -> None:
    coalescer = Coalescer(1, interval=0.03)
    coalescer.add("a")
    assert coalescer.take(10.0) == [{"event": "chunk", "attempt": 1, "content": "a"}]
    assert coalescer.due() == 10.03, "more text is expected"
    assert not coalescer.add("b"), "the pump need not be woken"
    assert not coalescer.add("c")
    assert coalescer.due() == 10.03
    assert coalescer.take(10.03) == [{"event": "chunk", "attempt": 1, "content": "bc"}]


def test_a_text_after_a_pause_is_due_at_once() -> None:
    coalescer = Coalescer(1, interval=0.03)
    coalescer.add("a")
    coalescer.take(10.0)
    assert not coalescer.take(10.03)
    assert coalescer.due() == math.inf, "no more text is expected"
    assert coalescer.add("b")
    assert coalescer.due() <= 10.04


def test_long_text_becomes_several_events() -> None:
    coalescer = Coalescer(1, max_chunk=3)
    coalescer.add("abcdefg")
    coalescer.add({"type": "reasoning", "text": "hijk"})
    coalescer.add(CALL)
    events = coalescer.take(10.0)
    assert [event.get("content") or event["part"].get("text") for event in events] == [
        "abc",
        "def",
        "g",
        "hij",
        "k",
        None,
    ]
    assert events[-1]["part"] == CALL


def test_much_text_is_due_at_once() -> None:
    coalescer = Coalescer(1, max_length=4)
    coalescer.add("a")
    coalescer.take(10.0)
    coalescer.add("bcd")
    assert coalescer.due() > 10.0
    assert coalescer.add("e")
    assert coalescer.due() == -math.inf


def test_parts_keep_their_places_and_reasoning_is_joined() -> None:
    coalescer = Coalescer(2)
    for item in ("a", {"type": "reasoning", "text": "b"}, {"type": "reasoning", "text": "c"}, CALL, "d", "e"):
        coalescer.add(item)
    assert coalescer.take(0.0) == [
        {"event": "chunk", "attempt": 2, "content": "a"},
        {"event": "part", "attempt": 2, "part": {"type": "reasoning", "text": "bc"}},
        {"event": "part", "attempt": 2, "part": CALL},
        {"event": "chunk", "attempt": 2, "content": "de"},
    ]


items = st.one_of(
    st.text(min_size=1, max_size=5),
    st.text(min_size=1, max_size=5).map(lambda text: {"type": "reasoning", "text": text}),
    st.just(CALL),
    st.none(),
)


@given(st.lists(items))
def test_however_it_is_taken_the_content_is_the_same(written: list[Any]) -> None:
    """At each None in `written`, the items before it are taken for a broadcast."""
    direct, taken, coalescer = Content(), Content(), Coalescer(1, max_length=4)

    def take() -> None:
        for event in coalescer.take(0.0):
            taken.add(event["content"] if event["event"] == "chunk" else event["part"])

    for item in written:
        if item is None:
            take()
            continue
        coalescer.add(item)
        direct.add(item)
    take()
    assert (taken.text, taken.parts) == (direct.text, direct.parts)
