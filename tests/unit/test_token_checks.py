"""The system checks report problems in the settings of tokens."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from reliable_cable import checks
from tests.unit.test_checks import configured, ids


@pytest.mark.parametrize("values", [{}, {"SECRET": "short"}, {"JWT_REQUIRED": True}, {"JWT_SECRET": "x" * 32}])
def test_no_problem(values: dict[str, Any]) -> None:
    with configured(**values):
        assert checks.check_tokens() == []


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    with configured(JWT_SECRET="x" * 32):
        (message,) = checks.check_tokens()
    assert ids([message]) == ["E006"]
    assert "pip install 'reliable_cable[jwt]'" in message.msg
    with configured():
        assert checks.check_tokens() == []


def test_a_wrong_authenticator() -> None:
    with configured(AUTHENTICATORS=["nowhere.authenticate"]):
        (message,) = checks.check_tokens()
    assert ids([message]) == ["E006"]
    assert "nowhere.authenticate" in message.msg


@pytest.mark.parametrize(
    ("values", "key"),
    [({"JWT_SECRET": "x" * 31}, "JWT_SECRET"), ({"SECRET": "short", "JWT_REQUIRED": True}, "SECRET")],
)
def test_a_short_secret(values: dict[str, Any], key: str) -> None:
    with configured(**values):
        (message,) = checks.check_tokens()
    assert ids([message]) == ["W008"]
    assert message.msg.startswith(f"RELIABLE_CABLE[{key!r}] has ")


def test_the_secret_is_of_no_importance_if_only_public_keys_verify_tokens() -> None:
    with configured(SECRET="short", JWT_JWKS="keys.json", JWT_ALGORITHMS=["RS256"]):
        assert checks.check_tokens() == []
