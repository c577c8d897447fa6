"""Errors, and reports of errors, do not show the secrets in the settings."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from reliable_cable.conf import read_settings

SECRETS = ("SECRET", "STREAMS_SECRET", "BROADCAST_KEY", "API_KEY", "RPC_KEY", "JWT_SECRET")


@pytest.mark.parametrize("key", SECRETS)
def test_errors_and_reports_of_errors_have_no_secrets(key: str) -> None:
    """A report of an error contains the `repr` of the variables of each function."""
    with pytest.raises(ImproperlyConfigured, match="is <bytes>; it must be a non-empty string") as caught:
        read_settings({key: b"hunter2"})
    assert "hunter2" not in str(caught.value)
    options = {"password": "hunter2"}
    settings = read_settings({key: "hunter2", "REDIS_URL": "redis://:hunter2@localhost", "REDIS_OPTIONS": options})
    assert "hunter2" not in repr(settings)
    assert settings.secret not in repr(settings)


@pytest.mark.parametrize(
    "values",
    [
        {"REDIS_URL": "http://:hunter2@localhost:6379/0"},
        {"REDIS_URL": "REDIS://user:hunter2@localhost"},
        {"REDIS_URL": "redis:/:hunter2@localhost"},
        {"REDIS_URL": ":hunter2@localhost"},
        {"REDIS_URL": "http://localhost?password=hunter2"},
        {"REDIS_URL": "http://:a@b?hunter2@localhost"},
        {"REDIS_URL": b"redis://:hunter2@localhost"},
        {"REDIS_URL": "redis://:hunter2/x@localhost:6379/0"},
        {"REDIS_URL": "redis://:1/hunter2@localhost:6379/0"},
        {"REDIS_URL": "redis://:1?hunter2@localhost:6379/0"},
        {"REDIS_URL": "redis://:1#hunter2@localhost:6379/0"},
        {"REDIS_URL": "redis://:hunter2[@localhost:6379/0"},
        {"REDIS_URL": "redis://:hunter2@localhost:port/0"},
        {"REDIS_URL": "redis://:hunter2@localhost:6379/zero"},
        {"NATS_URL": "nats://localhost,redis://user:hunter2@localhost"},
        {"NATS_URL": "nats://user:hunter2@localhost:port"},
        {"NATS_OPTIONS": [("password", "hunter2")]},
        {"HTTP_BROADCAST_URL": "ws://user:hunter2@localhost"},
        {"REDIS_OPTIONS": [("password", "hunter2")]},
        {"JWT_JWKS": b"https://user:hunter2@example.com/keys"},
        "redis://:hunter2@localhost",
        ["redis://:hunter2@localhost"],
    ],
)
def test_no_error_and_no_traceback_of_one_shows_a_password(values: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"must be|is not a URL") as caught:
        read_settings(values)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_the_error_for_a_wrong_scheme_shows_the_rest_of_the_url() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"is 'http://\*\*\*@localhost:6379/0'; it must be None or a URL"):
        read_settings({"REDIS_URL": "http://:hunter2@localhost:6379/0"})
