"""The verdict of a storm on presence finds repeated events and wrong member lists."""

from __future__ import annotations

from typing import Literal

from tests.storm.presence import TWICE, WRONG_LIST, Change, judge_changes, judge_last, judge_lists, reorder

JOIN: Literal["join"] = "join"
LEAVE: Literal["leave"] = "leave"


def judge(*changes: Change, excuses: tuple[tuple[float, float], ...] = ()) -> list[str]:
    return [finding.kind for finding in judge_changes("client", changes, excuses, reach=1.0)]


def test_alternating_joins_and_leaves_are_right() -> None:
    assert judge(Change(JOIN, "a", 1), Change(LEAVE, "a", 2), Change(JOIN, "b", 3), Change(JOIN, "a", 4)) == []


def test_a_repeated_event_is_found() -> None:
    assert judge(Change(JOIN, "a", 1), Change(JOIN, "b", 2), Change(JOIN, "a", 3)) == [TWICE]
    assert judge(Change(JOIN, "a", 1), Change(LEAVE, "a", 2), Change(LEAVE, "a", 3)) == [TWICE]


def test_a_restore_may_repeat_an_event_of_the_former_connection() -> None:
    assert judge(Change(JOIN, "a", 1, connection=1), Change(JOIN, "a", 2, connection=2)) == []
    assert judge(Change(JOIN, "a", 1, connection=2), Change(JOIN, "a", 2, connection=2)) == [TWICE]


def test_a_repeated_event_is_excused_only_by_a_fault_at_about_the_same_time() -> None:
    changes = Change(JOIN, "a", 10), Change(JOIN, "a", 20)
    assert judge(*changes, excuses=((15, 15),)) == []
    assert judge(*changes, excuses=((9.5, 9.5),)) == []
    assert judge(*changes, excuses=((0, 9.5),)) == []
    assert judge(*changes, excuses=((0, 30),)) == []
    assert judge(*changes, excuses=((8, 8), (21, 22))) == [TWICE]


def test_equal_member_lists_are_right() -> None:
    assert judge_lists({"a": 1}, {"client": {"a": 1}}, {"a": 1}) == []


def test_a_wrong_member_list_is_found() -> None:
    for members, count in [({}, 1), ({"a": 1, "b": 2}, 1), ({"a": 2}, 1), ({"b": 1}, 2)]:
        (finding,) = judge_lists({"a": 1}, {"client": members}, {"a": 1})
        assert (finding.kind, finding.where, finding.count) == (WRONG_LIST, "client", count)


def test_a_missing_list_of_a_client_and_a_wrong_list_of_the_servers_are_found() -> None:
    assert [f.where for f in judge_lists({"a": 1}, {"client": None}, {})] == ["the servers", "client"]


def test_the_last_signal_of_each_member_must_be_right() -> None:
    changes = [Change(JOIN, "a", 1), Change(JOIN, "b", 2), Change(LEAVE, "b", 3)]
    assert judge_last("signals", ["a"], changes) == []
    assert [finding.count for finding in judge_last("signals", ["b"], changes)] == [2]


def test_signals_of_simultaneous_changes_may_be_exchanged() -> None:
    changes = [Change(JOIN, "a", 1), Change(JOIN, "a", 2.01), Change(JOIN, "b", 2.02), Change(LEAVE, "a", 2.03)]
    assert judge(*changes) == [TWICE]
    reordered = reorder(changes, within=0.1)
    assert judge(*reordered) == []
    assert judge_last("signals", ["a", "b"], reordered) == []


def test_signals_of_other_changes_are_not_exchanged() -> None:
    changes = [Change(JOIN, "a", 1), Change(JOIN, "a", 2), Change(LEAVE, "a", 3)]
    assert judge(*reorder(changes, within=0.1)) == [TWICE]


def test_signals_are_not_exchanged_if_that_only_moves_a_repetition() -> None:
    # The second join follows a loss of data in Redis. The member then leaves and joins again.
    changes = [Change(JOIN, "a", 1), Change(JOIN, "a", 9), Change(LEAVE, "a", 9.01), Change(JOIN, "a", 11)]
    reordered = reorder(changes, within=0.1)
    assert reordered == changes
    assert judge(*reordered, excuses=((8, 8),)) == []
