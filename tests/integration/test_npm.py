"""Runs the unmodified npm clients in Node against both servers. The scenarios are in tests/node/."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from reliable_cable.client.build import build
from tests.node import require_node
from tests.node.running import run_script
from tests.support.client import unique
from tests.support.redis import RedisPool, find_binaries
from tests.support.server import Kind, Server, ServerPool

#: How long, in seconds, all scenarios of a client may take together.
PATIENCE = 100.0


@pytest.mark.node
@pytest.mark.parametrize(
    ("script", "least"), [("anycable.mjs", 20), ("actioncable.mjs", 5), ("serverless.mjs", 3), ("pages.mjs", 2)]
)
async def test_an_unmodified_client(server: Server, script: str, least: int) -> None:
    await run(server, script, least)


@pytest.fixture(params=["database", pytest.param("redis", marks=pytest.mark.redis)])
def engine(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of an engine. Each test runs once with each engine."""
    if request.param == "database":
        return {}
    pool: RedisPool = request.getfixturevalue("redis_pool")
    return {"REDIS_URL": pool.get(find_binaries()[0].name).url, "KEY_PREFIX": unique("cable-test-")}


@pytest.fixture
async def bundle() -> None:
    """Build the bundle."""
    require_node()
    await asyncio.to_thread(build)


@pytest.mark.node
@pytest.mark.usefixtures("bundle")
async def test_the_bundle(servers: ServerPool, kind: Kind, engine: dict[str, Any]) -> None:
    """The scenarios of the bundle succeed with both engines."""
    with servers.make(kind, PRESENCE_TTL=60, PRESENCE_GRACE=0.5, **engine) as server:
        await run(server, "bundle.mjs", 11)


@pytest.mark.node
@pytest.mark.usefixtures("bundle")
async def test_runs_in_the_bundle(servers: ServerPool, kind: Kind, engine: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        "RUN_LEASE": 15,
        "RUN_PERMISSIONS": "tests.integration.project.runs.Everyone",
        # Each text is broadcast in a message of its own, and an answer may have more messages than the history keeps.
        "RUN_BROADCAST_INTERVAL": 0,
        "STREAMS": {"run:*": {"history_size": 10}},
    }
    with servers.make(kind, **options, **engine) as server:
        await run(server, "runs.mjs", 19)


@pytest.mark.node
async def test_an_unmodified_client_of_a_server_that_compresses(servers: ServerPool) -> None:
    """The package `ws` offers permessage-deflate by default."""
    await run(servers.get("compressing"), "anycable.mjs", 20)


async def run(server: Server, script: str, least: int) -> None:
    """Run the scenarios of a client. Check that all of them succeed, and that there are at least `least`."""
    status, output, errors = await run_script(script, str(server.port), server.kind, patience=PATIENCE)
    outcomes = {line["scenario"]: line for line in map(json.loads, output.splitlines())}
    failed = [f"{name}: {line['error']}" for name, line in outcomes.items() if not line["ok"]]
    assert not failed, "\n".join(failed)
    assert status == 0, errors
    assert len(outcomes) >= least, f"only {sorted(outcomes)} ran"
