"""The secrets in the settings are not in errors, nor in reports of errors."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from reliable_cable.conf import read_settings

SECRETS = ("SECRET", "STREAMS_SECRET", "BROADCAST_KEY", "API_KEY", "JWT_SECRET")


@pytest.mark.parametrize("key", SECRETS)
def test_errors_and_reports_of_errors_have_no_secrets(key: str) -> None:
    """Reports of errors contain the variables of each function as text."""
    with pytest.raises(ImproperlyConfigured, match="is <bytes>; it must be a non-empty string") as caught:
        read_settings({key: b"hunter2"})
    assert "hunter2" not in str(caught.value)
    options = {"password": "hunter2"}
    settings = read_settings({key: "hunter2", "REDIS_URL": "redis://:hunter2@localhost", "REDIS_OPTIONS": options})
    assert "hunter2" not in repr(settings)
    assert settings.secret not in repr(settings)
