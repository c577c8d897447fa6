"""History requests that wait for the same replay are merged into one."""

from __future__ import annotations

import json

import pytest

from reliable_cable.protocol.positions import UNKNOWN_POSITION, HistoryRequest, StreamPosition

EARLY, LATE = StreamPosition("e", 1), StreamPosition("e", 5)
ELSEWHERE = StreamPosition("f", 3)


def test_the_dict_of_a_position_can_be_encoded_as_json() -> None:
    assert json.dumps(LATE.as_dict()) == '{"epoch": "e", "offset": 5}'


@pytest.mark.parametrize(
    ("one", "other", "merged"),
    [
        (HistoryRequest(), HistoryRequest(), HistoryRequest()),
        (HistoryRequest(10), HistoryRequest(20), HistoryRequest(10)),
        (HistoryRequest(None), HistoryRequest(20), HistoryRequest(20)),
        (
            HistoryRequest(10, {"a": LATE, "b": EARLY}),
            HistoryRequest(20, {"a": LATE, "b": EARLY}),
            HistoryRequest(10, {"a": LATE, "b": EARLY}),
        ),
        # Only one of the two requests asks for the stream.
        (HistoryRequest(None, {"a": LATE}), HistoryRequest(), HistoryRequest(None, {"a": LATE})),
    ],
)
def test_everything_that_one_of_them_asks_for_is_sent(
    one: HistoryRequest, other: HistoryRequest, merged: HistoryRequest
) -> None:
    assert one.merged(other) == merged
    assert other.merged(one) == merged


def test_a_position_and_a_time_cannot_be_compared() -> None:
    merged = HistoryRequest(10, {"a": LATE, "b": LATE}).merged(HistoryRequest(20, {"a": LATE}))
    assert merged == HistoryRequest(10, {"a": LATE, "b": UNKNOWN_POSITION})


@pytest.mark.parametrize("position", [EARLY, ELSEWHERE])
def test_two_positions_are_not_both_served(position: StreamPosition) -> None:
    one, other = HistoryRequest(None, {"a": LATE}), HistoryRequest(None, {"a": position})
    assert one.merged(other) == other.merged(one) == HistoryRequest(None, {"a": UNKNOWN_POSITION})
