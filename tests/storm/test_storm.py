"""A short storm on each engine. `python -m tests.storm` runs longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.node import require_node
from tests.storm.plan import Plan
from tests.storm.report import table, violations
from tests.storm.storm import Outcome, Storm

#: Faults that need neither a replica nor a copy of a store.
SIMPLE = ("client reset", "server SIGKILL", "server SIGTERM")
SIMPLE_OF_REDIS = (
    *SIMPLE,
    "pub/sub cut",
    "append reply lost",
    "Redis paused",
    "Redis stalled",
    "Redis restarted",
    "Redis older",
    "Redis empty",
    "FLUSHALL",
)
ENGINES = [
    pytest.param(Plan(seconds=15, clients=12, engine="redis", only=SIMPLE_OF_REDIS), id="redis"),
    pytest.param(Plan(seconds=6, clients=8, npm_clients=2, engine="database", only=SIMPLE), id="database"),
]


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.node
@pytest.mark.timeout(300)
@pytest.mark.parametrize("plan", ENGINES)
async def test_every_promise_is_kept_in_a_storm(plan: Plan, tmp_path: Path) -> None:
    require_node()
    outcome = await Storm(plan, tmp_path).run()
    print(table(outcome))  # noqa: T201 - pytest shows the output of a test that fails
    assert outcome.good, violations(outcome)
    check_counts(outcome)


def check_counts(outcome: Outcome) -> None:
    """Check that the storm injected enough faults, and had enough broadcasts and deliveries, and a restore."""
    plan = outcome.plan
    assert sum(outcome.faults.values()) >= plan.seconds / 2
    assert outcome.broadcasts > 10 * plan.seconds
    assert outcome.deliveries >= outcome.broadcasts * (plan.clients + plan.npm_clients) / 2
    assert outcome.restores > 0
