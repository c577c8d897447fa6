"""Payloads that clients drop because they are falsy in JavaScript."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.protocol.payloads import is_falsy

#: Zero has many spellings. The last spellings are too small for a double, so they are zero, too.
ZEROS = ["0", "-0", "0.0", "-0.0", "0.000", "0e5", "0E5", "-0e+5", "0e-5", "0.0e0", "1e-400", "-1e-400", "2e-324"]
FALSY = ["null", "false", '""', *ZEROS]
TRUTHY = ["true", "1", "-1", "0.1", "1e5", "1e400", "5e-324", "10", '"0"', '" "', '"null"', "[]", "{}", "[0]", "[null]"]


@pytest.mark.parametrize("text", FALSY)
def test_falsy(text: str) -> None:
    assert is_falsy(text)


@pytest.mark.parametrize("text", [*TRUTHY, "9" * 5000])
def test_truthy(text: str) -> None:
    assert not is_falsy(text)


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(), st.lists))
def test_what_python_encodes(value: object) -> None:
    # The same scalars are falsy in Python and in JavaScript. Arrays are always truthy in JavaScript.
    assert is_falsy(json.dumps(value)) is (not value and not isinstance(value, list))
