"""A small storm of runs (see Contributing: The storm of runs) on each engine. tests.storm_runs runs larger ones."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from reliable_cable.client.build import build
from tests.node import node_modules, require_node
from tests.storm_runs.durable import LIVE
from tests.storm_runs.plan import Plan
from tests.storm_runs.readers import DURABLE_KINDS
from tests.storm_runs.report import table, violations
from tests.storm_runs.storm import Storm

SMALL = Plan(runs=12, tokens=60, pause=0.03, writers=2, channel_readers=1, every=0.5, faults=4, lease=3)
PLANS = [
    pytest.param(SMALL, id="redis", marks=pytest.mark.redis),
    pytest.param(replace(SMALL, engine="database"), id="database"),
]


@pytest.mark.node
@pytest.mark.timeout(300)
@pytest.mark.parametrize("plan", PLANS)
async def test_every_reader_ends_with_the_answer_in_the_database(plan: Plan, tmp_path: Path) -> None:
    node = require_node()
    await asyncio.to_thread(node_modules)
    await asyncio.to_thread(build)
    outcome = await Storm(plan, tmp_path, node).run()
    print(table(outcome))  # noqa: T201 - pytest shows the output of a test that fails
    assert outcome.good, violations(outcome)
    for kind in ("channel", "AI SDK", "AG-UI", "followRun", *DURABLE_KINDS):
        assert outcome.counts[f"{kind}: visits"] >= plan.runs
        assert outcome.counts[f"{kind}: read to the end"] >= plan.runs
    streams = sum(plan.has_stream(number) for number in range(plan.runs))
    assert outcome.counts["durable streams: messages"] == 2 * streams * plan.messages
    for live in LIVE.values():
        assert outcome.counts[f"durable streams: stream {live}: read to the end"] == streams
