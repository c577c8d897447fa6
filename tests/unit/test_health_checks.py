"""`check --deploy` reports database connections that are kept without health checks (W006)."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks

from reliable_cable import checks

POSTGRES = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}


def reported(settings: Any, *, deploy: bool = True, **options: Any) -> list[CheckMessage]:
    """Return the messages with the id W006 for a database with these options."""
    # The dict is changed in place, because Django warns when `DATABASES` is replaced.
    settings.DATABASES["shop"] = {**POSTGRES, **options}
    try:
        messages = run_checks(tags=[checks.TAG], include_deployment_checks=deploy)
    finally:
        del settings.DATABASES["shop"]
    return [message for message in messages if message.id == "reliable_cable.W006"]


@pytest.mark.parametrize("age", [60, None])
def test_kept_connections_without_health_checks_are_reported_with_the_remedy(settings: Any, age: int | None) -> None:
    (problem,) = reported(settings, CONN_MAX_AGE=age)
    assert problem.msg.startswith("DATABASES['shop'] reuses connections (CONN_MAX_AGE) without health checks.")
    assert problem.hint == "Set DATABASES['shop']['CONN_HEALTH_CHECKS'] to True."
    assert reported(settings, deploy=False, CONN_MAX_AGE=age) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"CONN_MAX_AGE": 0},
        {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True},
        {"CONN_MAX_AGE": 60, "ENGINE": "django.db.backends.sqlite3"},
    ],
)
def test_other_connections_are_not_reported(settings: Any, options: dict[str, Any]) -> None:
    assert reported(settings, **options) == []
