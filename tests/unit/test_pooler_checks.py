"""The system check for connection poolers that pass no notifications of PostgreSQL on (W014)."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks

from reliable_cable import checks

POSTGRES = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}
POOLED = {**POSTGRES, "DISABLE_SERVER_SIDE_CURSORS": True}


def reported(settings: Any, databases: dict[str, Any], **values: Any) -> list[CheckMessage]:
    """Return the messages with the id W014 for these databases and settings."""
    # The dict is changed in place, because Django warns when `DATABASES` is replaced.
    settings.DATABASES.update(databases)
    try:
        settings.RELIABLE_CABLE = {"DATABASE": "shop", **values}
        messages = run_checks(tags=[checks.TAG])
    finally:
        for alias in databases:
            del settings.DATABASES[alias]
    return [message for message in messages if message.id == "reliable_cable.W014"]


def test_a_pooler_in_transaction_mode_is_reported_with_the_remedy(settings: Any) -> None:
    (problem,) = reported(settings, {"shop": POOLED})
    assert problem.msg.startswith("DATABASES['shop'] has DISABLE_SERVER_SIDE_CURSORS")
    assert "RELIABLE_CABLE['NOTIFY']" in str(problem.hint)


@pytest.mark.parametrize(
    ("databases", "values"),
    [
        ({"shop": POSTGRES}, {}),
        ({"shop": POOLED}, {"NOTIFY": False}),
        ({"shop": POOLED}, {"ENGINE": "memory"}),
        ({"shop": POOLED, "direct": POSTGRES}, {"NOTIFY": "direct"}),
        ({"shop": {**POOLED, "ENGINE": "django.db.backends.sqlite3", "OPTIONS": {}}}, {}),
    ],
)
def test_other_databases_are_not_reported(settings: Any, databases: dict[str, Any], values: dict[str, Any]) -> None:
    assert reported(settings, databases, **values) == []


def test_the_alias_of_a_pooled_connection_is_reported(settings: Any) -> None:
    (problem,) = reported(settings, {"shop": POSTGRES, "direct": POOLED}, NOTIFY="direct")
    assert "DATABASES['direct']" in problem.msg
