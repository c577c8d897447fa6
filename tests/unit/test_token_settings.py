"""The settings of tokens depend on each other, and are checked together."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from reliable_cable.conf import read_settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"JWT_ALGORITHMS": ["RS256"]}, "it must be used with JWT_JWKS, which has the keys for RS256"),
        ({"JWT_JWKS": "keys.json"}, "a list with the algorithms of the keys in JWT_JWKS"),
        ({"JWT_JWKS": "keys.json", "JWT_ALGORITHMS": ["HS256"]}, "a list with the algorithms of the keys in JWT_JWKS"),
        ({"JWT_JWKS": "keys.json", "JWT_ALGORITHMS": ["RS256"], "JWT_SECRET": "s"}, "the algorithm of JWT_SECRET"),
    ],
)
def test_algorithms_of_tokens_without_a_key_and_keys_without_an_algorithm_are_errors(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        read_settings(values)


def test_a_single_audience_or_issuer_is_read_as_a_tuple() -> None:
    settings = read_settings({"JWT_AUDIENCE": "web", "JWT_ISSUER": "https://login.example.com"})
    assert (settings.jwt_audience, settings.jwt_issuer) == (("web",), ("https://login.example.com",))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, False),
        ({"SECRET": "s"}, False),
        ({"JWT_SECRET": "s"}, True),
        ({"JWT_REQUIRED": False}, True),
        ({"AUTHENTICATORS": []}, True),
    ],
)
def test_tokens_are_read_if_one_of_their_settings_is_given(values: dict[str, Any], expected: bool) -> None:
    assert read_settings(values).reads_tokens is expected
