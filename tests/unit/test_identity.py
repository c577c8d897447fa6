"""Identities of connections are the same in every process."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.utils.functional import SimpleLazyObject

from reliable_cable.identity import condition_key, condition_keys, identify, identity_of, matches


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (get_user_model()(pk=1), "auth.user:1"),
        (SimpleLazyObject(lambda: get_user_model()(pk=1)), "auth.user:1"),
        (None, ""),
        (AnonymousUser(), ""),
        (SimpleLazyObject(AnonymousUser), ""),
        ("1", "str:1"),
        (1, "int:1"),
    ],
)
def test_values_are_named_by_what_they_are(value: Any, text: str) -> None:
    assert identify(value) == text


def test_an_attribute_that_is_not_there_is_nobody() -> None:
    class Owner:
        user = "ann"

    assert identity_of(Owner(), ("user", "tenant")) == {"user": "str:ann", "tenant": ""}


def test_a_condition_matches_who_has_all_of_it() -> None:
    identity = {"user": "u", "tenant": "t"}
    assert matches({"user": "u"}, identity)
    assert matches({"tenant": "t", "user": "u"}, identity)
    assert not matches({"user": "u", "tenant": "x"}, identity)
    assert not matches({"user": "u", "role": ""}, identity)


def test_an_identitys_keys_are_those_of_the_conditions_that_it_matches() -> None:
    keys = condition_keys({"user": "u", "tenant": "t", "device": ""})
    conditions = [{"user": "u"}, {"tenant": "t"}, {"tenant": "t", "user": "u"}]
    assert sorted(keys) == sorted(condition_key(condition) for condition in conditions)
    assert condition_key({"user": "u", "tenant": "t"}) == condition_key({"tenant": "t", "user": "u"})
    assert condition_keys({"user": ""}) == []
