"""The identity of a connection is the same in every process."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.db.models import CASCADE, Model, OneToOneField
from django.test.utils import isolate_apps
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
def test_the_text_of_a_value_has_its_type_or_model(value: Any, text: str) -> None:
    assert identify(value) == text


@isolate_apps("tests")
def test_instances_of_a_proxy_model_have_the_text_of_the_model() -> None:
    class Staff(get_user_model()):  # type: ignore[misc]
        class Meta:
            app_label = "tests"
            proxy = True

    assert identify(Staff(pk=1)) == "auth.user:1"
    assert identify(SimpleLazyObject(lambda: Staff(pk=1))) == "auth.user:1"


@isolate_apps("tests")
def test_children_of_multi_table_inheritance_have_the_text_of_their_parent() -> None:
    class Account(get_user_model()):  # type: ignore[misc]
        class Meta:
            app_label = "tests"

    class Manager(Account):
        class Meta:
            app_label = "tests"

    class Boss(Manager):
        class Meta:
            app_label = "tests"
            proxy = True

    class Profile(Model):  # noqa: DJ008 - nothing shows it
        user = OneToOneField(get_user_model(), on_delete=CASCADE, primary_key=True)

        class Meta:
            app_label = "tests"

    for cls in (Account, Manager, Boss):
        assert identify(cls(pk=1)) == "auth.user:1"
    assert identify(Profile(pk=1)) == "tests.profile:1", "it belongs to a user, and is none"


@pytest.mark.django_db
def test_an_instance_with_deferred_fields_has_the_text_of_the_row() -> None:
    user = get_user_model().objects.create_user("ann")
    assert identify(get_user_model().objects.only("pk").get()) == identify(user)


def test_a_missing_attribute_is_an_empty_text() -> None:
    class Owner:
        user = "ann"

    assert identity_of(Owner(), ("user", "tenant")) == {"user": "str:ann", "tenant": ""}


def test_a_condition_matches_identities_that_have_all_of_its_values() -> None:
    identity = {"user": "u", "tenant": "t"}
    assert matches({"user": "u"}, identity)
    assert matches({"tenant": "t", "user": "u"}, identity)
    assert not matches({"user": "u", "tenant": "x"}, identity)
    assert not matches({"user": "u", "role": ""}, identity)


def test_the_keys_of_an_identity_are_those_of_all_conditions_that_match_it() -> None:
    keys = condition_keys({"user": "u", "tenant": "t", "device": ""})
    conditions = [{"user": "u"}, {"tenant": "t"}, {"tenant": "t", "user": "u"}]
    assert sorted(keys) == sorted(condition_key(condition) for condition in conditions)
    assert condition_key({"user": "u", "tenant": "t"}) == condition_key({"tenant": "t", "user": "u"})
    assert condition_keys({"user": ""}) == []
