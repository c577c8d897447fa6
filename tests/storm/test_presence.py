"""The storm's verdict on presence finds what is told twice, and who believes what is not so."""

from __future__ import annotations

from typing import Literal

from tests.storm.presence import BELIEF, TWICE, Change, judge_beliefs, judge_changes, judge_last, untangle

JOIN: Literal["join"] = "join"
LEAVE: Literal["leave"] = "leave"


def told(*changes: Change, excuses: tuple[tuple[float, float], ...] = ()) -> list[str]:
    return [finding.kind for finding in judge_changes("client", changes, excuses, reach=1.0)]


def test_joins_and_leaves_that_alternate_are_right() -> None:
    assert told(Change(JOIN, "a", 1), Change(LEAVE, "a", 2), Change(JOIN, "b", 3), Change(JOIN, "a", 4)) == []


def test_a_change_that_is_told_twice_is_found() -> None:
    assert told(Change(JOIN, "a", 1), Change(JOIN, "b", 2), Change(JOIN, "a", 3)) == [TWICE]
    assert told(Change(JOIN, "a", 1), Change(LEAVE, "a", 2), Change(LEAVE, "a", 3)) == [TWICE]


def test_a_restore_may_repeat_what_was_told_before_it() -> None:
    assert told(Change(JOIN, "a", 1, hearing=1), Change(JOIN, "a", 2, hearing=2)) == []
    assert told(Change(JOIN, "a", 1, hearing=2), Change(JOIN, "a", 2, hearing=2)) == [TWICE]


def test_a_fault_between_excuses_and_one_long_before_or_after_does_not() -> None:
    twice = Change(JOIN, "a", 10), Change(JOIN, "a", 20)
    assert told(*twice, excuses=((15, 15),)) == []
    assert told(*twice, excuses=((9.5, 9.5),)) == []
    assert told(*twice, excuses=((0, 9.5),)) == []
    assert told(*twice, excuses=((0, 30),)) == []
    assert told(*twice, excuses=((8, 8), (21, 22))) == [TWICE]


def test_everybody_who_believes_what_is_so_is_right() -> None:
    assert judge_beliefs({"a": 1}, {"client": {"a": 1}}, {"a": 1}) == []


def test_a_wrong_belief_is_found() -> None:
    for believed, count in [({}, 1), ({"a": 1, "b": 2}, 1), ({"a": 2}, 1), ({"b": 1}, 2)]:
        (finding,) = judge_beliefs({"a": 1}, {"client": believed}, {"a": 1})
        assert (finding.kind, finding.where, finding.count) == (BELIEF, "client", count)


def test_a_client_that_knows_nothing_and_a_service_that_is_wrong_are_found() -> None:
    assert [f.where for f in judge_beliefs({"a": 1}, {"client": None}, {})] == ["the service", "client"]


def test_the_last_that_was_told_must_be_so() -> None:
    changes = [Change(JOIN, "a", 1), Change(JOIN, "b", 2), Change(LEAVE, "b", 3)]
    assert judge_last("signals", ["a"], changes) == []
    assert [finding.count for finding in judge_last("signals", ["b"], changes)] == [2]


def test_signals_of_changes_at_the_same_time_may_be_exchanged() -> None:
    changes = [Change(JOIN, "a", 1), Change(JOIN, "a", 2.01), Change(JOIN, "b", 2.02), Change(LEAVE, "a", 2.03)]
    assert told(*changes) == [TWICE]
    untangled = untangle(changes, within=0.1)
    assert told(*untangled) == []
    assert judge_last("signals", ["a", "b"], untangled) == []


def test_signals_that_are_further_apart_are_not_exchanged() -> None:
    changes = [Change(JOIN, "a", 1), Change(JOIN, "a", 2), Change(LEAVE, "a", 3)]
    assert told(*untangle(changes, within=0.1)) == [TWICE]
