"""Each valid string in `RATE_LIMITS` means a rate, and any other string is an error."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.conf import RateLimit, read_settings

SECONDS = {"s": 1, "m": 60, "h": 3600}


@given(
    count=st.integers(1, 10**9 - 1), number=st.none() | st.integers(1, 99_999), unit=st.sampled_from(sorted(SECONDS))
)
def test_a_rate_is_read_as_it_was_written(count: int, number: int | None, unit: str) -> None:
    text = f"{count}/{'' if number is None else number}{unit}"
    limit = RateLimit.parse(text)
    assert (limit.count, limit.period) == (count, (number or 1) * SECONDS[unit])
    assert read_settings({"RATE_LIMITS": {"command": text}}).rate_limit("command") == limit


PARTS = st.sampled_from(
    ["0", "1", "20", "٣", "²", "/", "s", "m", "h", "d", "S", " ", ".", "-", "+", "e", "\n", "_", ","]
)


@given(text=st.lists(PARTS, max_size=7).map("".join) | st.text() | st.integers() | st.none() | st.binary())
def test_the_error_for_any_other_value_names_the_key_and_what_is_allowed(text: Any) -> None:
    if isinstance(text, str) and re.fullmatch(r"[1-9][0-9]*/([1-9][0-9]*)?[smh]", text, re.ASCII):
        assert RateLimit.parse(text).rate > 0
        return
    with pytest.raises(ImproperlyConfigured, match=re.escape("['RATE_LIMITS']['whisper'] is ")) as caught:
        read_settings({"RATE_LIMITS": {"command": "50/s", "whisper": text}})
    assert "'50/s', '20/10s'" in str(caught.value)


def test_an_unknown_limit_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"'comand'; did you mean 'command'\? Allowed: connect, command"):
        read_settings({"RATE_LIMITS": {"comand": "50/s"}})


def test_nothing_is_limited_by_default() -> None:
    settings = read_settings({})
    assert [settings.rate_limit(name) for name in ("connect", "command", "whisper")] == [None, None, None]
