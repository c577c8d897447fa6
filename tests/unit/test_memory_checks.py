"""`check --deploy` reports stores in the memory of one process (W005)."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.test import override_settings

from reliable_cable import checks
from reliable_cable.stores.engine import ENGINE_CLASSES

NOWHERE = dict.fromkeys(("streams", "presence", "sessions"), "nowhere.Store")


def reported(*, deploy: bool = True, **values: Any) -> list[CheckMessage]:
    """Return the messages with the id W005."""
    with override_settings(RELIABLE_CABLE=values):
        messages = run_checks(tags=[checks.TAG], include_deployment_checks=deploy)
    return [message for message in messages if message.id == "reliable_cable.W005"]


def test_streams_in_memory_are_reported_with_the_remedy() -> None:
    (problem,) = reported(ENGINE="memory")
    assert problem.msg.startswith("Streams are in the memory of one process.")
    assert "REDIS_URL" in str(problem.hint)


def test_presence_in_memory_is_reported_with_the_remedy() -> None:
    (problem,) = reported(ENGINE={**ENGINE_CLASSES["database"], "presence": ENGINE_CLASSES["memory"]["presence"]})
    assert problem.msg.startswith("Presence is in the memory of each process.")
    assert "REDIS_URL" in str(problem.hint)


def test_development_is_not_checked() -> None:
    assert reported(deploy=False, ENGINE="memory") == []


def test_redis_is_not_reported() -> None:
    assert reported(REDIS_URL="redis://localhost") == []


def test_the_database_is_not_reported() -> None:
    assert reported(ENGINE="database") == []


@pytest.mark.parametrize("engine", ["nothing", NOWHERE])
def test_invalid_settings_are_left_to_other_checks(engine: Any) -> None:
    assert reported(ENGINE=engine) == []
