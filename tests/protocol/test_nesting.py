"""The maximum depth of JSON texts, which is 64 levels."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.protocol.nesting import MAX_DEPTH, is_too_deep


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def depth_of(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(depth_of, items), default=0)


class TestArraysAndObjects:
    @pytest.mark.parametrize("text", [nested(MAX_DEPTH), '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH])
    def test_64_levels_are_allowed(self, text: str) -> None:
        assert not is_too_deep(text)

    @pytest.mark.parametrize(
        "text",
        [
            nested(MAX_DEPTH + 1),
            '{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1),
            '[{"a":' * 33 + "1" + "}]" * 33,
            f"[1, [], {nested(MAX_DEPTH)}]",
            nested(1500),
            nested(9988),
            nested(1_000_000),
        ],
    )
    def test_65_levels_are_too_many(self, text: str) -> None:
        assert is_too_deep(text)

    def test_siblings_are_not_levels(self) -> None:
        assert not is_too_deep(json.dumps([[{}]] * 1000))

    @given(
        st.recursive(st.text('[]{}"\\,é'), lambda each: st.lists(each) | st.dictionaries(st.text('[{"\\'), each)),
        st.integers(58, 66),
    )
    def test_the_depth_is_that_of_the_value(self, value: Any, levels: int) -> None:
        text = '["[[{{",' * levels + json.dumps(value, ensure_ascii=False) + "]" * levels
        assert is_too_deep(text) is (depth_of(json.loads(text)) > MAX_DEPTH)


class TestStrings:
    @pytest.mark.parametrize(
        "text",
        ["[" * 100, "{[" * 100, '"[' * 100, '\\"[' * 100, "\\[" * 100, "\\" * 101 + "[" * 100, '\\\\"[[' * 100, "é["],
    )
    def test_brackets_in_strings_are_not_levels(self, text: str) -> None:
        assert not is_too_deep(json.dumps([text]))
        assert not is_too_deep(json.dumps({text: 1}, ensure_ascii=False))

    def test_brackets_after_a_string_with_escapes_are_levels(self) -> None:
        assert is_too_deep('["\\\\\\"", "\\\\", ' + nested(MAX_DEPTH) + "]")

    def test_lone_surrogates_are_no_error(self) -> None:
        assert is_too_deep('["\ud800",' + nested(MAX_DEPTH) + "]")


@pytest.mark.parametrize("text", ["]" * 500 + "[" * 500, '["' + "[" * 500, "[}" * 500])
def test_a_text_that_is_not_json_fails_before_it_is_too_deep(text: str) -> None:
    assert not is_too_deep(text)
    with pytest.raises(json.JSONDecodeError):  # not a RecursionError
        json.loads(text)
