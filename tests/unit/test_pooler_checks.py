"""The system checks of the connection that receives notifications of PostgreSQL (W014, E004)."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.db import connections

from reliable_cable import checks

POSTGRES = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}
SQLITE = {**POSTGRES, "ENGINE": "django.db.backends.sqlite3", "OPTIONS": {"transaction_mode": "IMMEDIATE"}}
POOLED = {**POSTGRES, "DISABLE_SERVER_SIDE_CURSORS": True}


#: An engine that has only its presence store in the database.
ONLY_PRESENCE = {
    "streams": "reliable_cable.streams.memory.MemoryStreamStore",
    "presence": "reliable_cable.presence.model.ModelPresenceStore",
    "sessions": "reliable_cable.sessions.memory.MemorySessionStore",
}


def reported(settings: Any, databases: dict[str, Any], id: str = "W014", **values: Any) -> list[CheckMessage]:  # noqa: A002
    """Return the messages with this id for these databases and settings."""
    # The dict is changed in place, because Django warns when `DATABASES` is replaced.
    settings.DATABASES.update(databases)
    try:
        settings.RELIABLE_CABLE = {"DATABASE": "shop", **values}
        messages = run_checks(tags=[checks.TAG])
    finally:
        for connection in connections.all(initialized_only=True):
            if connection.alias in databases:
                del connections[connection.alias]
        for alias in databases:
            del settings.DATABASES[alias]
    return [message for message in messages if message.id == f"reliable_cable.{id}"]


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
        ({"shop": {**POOLED, **SQLITE}}, {}),
    ],
)
def test_other_databases_are_not_reported(settings: Any, databases: dict[str, Any], values: dict[str, Any]) -> None:
    assert reported(settings, databases, **values) == []


def test_the_alias_of_a_pooled_connection_is_reported(settings: Any) -> None:
    (problem,) = reported(settings, {"shop": POSTGRES, "direct": POOLED}, NOTIFY="direct")
    assert "DATABASES['direct']" in problem.msg


def test_an_engine_with_only_presence_in_the_database_is_reported(settings: Any) -> None:
    assert len(reported(settings, {"shop": POOLED}, ENGINE=ONLY_PRESENCE)) == 1


def test_an_alias_that_is_not_postgresql_is_an_error(settings: Any) -> None:
    (problem,) = reported(settings, {"shop": POSTGRES, "direct": SQLITE}, "E004", NOTIFY="direct")
    assert problem.msg == "RELIABLE_CABLE['NOTIFY'] is 'direct', a sqlite database; LISTEN needs PostgreSQL."


@pytest.mark.parametrize(
    ("databases", "values"),
    [
        ({"shop": POSTGRES, "direct": POSTGRES}, {"NOTIFY": "direct"}),
        ({"shop": SQLITE, "direct": SQLITE}, {"NOTIFY": "direct"}),
        ({"shop": POSTGRES}, {}),
        ({"shop": POSTGRES, "direct": SQLITE}, {"ENGINE": "memory", "NOTIFY": "direct"}),
    ],
)
def test_other_aliases_are_no_error(settings: Any, databases: dict[str, Any], values: dict[str, Any]) -> None:
    assert reported(settings, databases, "E004", **values) == []
