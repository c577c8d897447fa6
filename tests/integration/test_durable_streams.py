"""Durable Streams: the public conformance suite and the npm client, both unmodified, against real servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.node import node_modules, require_node
from tests.node.running import run_script
from tests.support.client import unique
from tests.support.redis import RedisPool, find_binaries
from tests.support.run_servers import CSRF
from tests.support.server import Kind, Server, ServerPool
from tests.unit.test_docs import BLOCKS

pytestmark = [pytest.mark.node]

SETTINGS: dict[str, Any] = {
    "RUN_DURABLE_STREAMS": "tests.integration.project.durable.Streams",
    "STREAMS": {"durable:*": {"durable": True, "history_size": 100_000, "history_ttl": 86400}},
    "RUN_PERMISSIONS": "tests.integration.project.runs.Everyone",
    "CORS_ORIGINS": ["https://example.com"],
}
VARIABLES: dict[str, Any] = {
    "CABLE_TEST_SQLITE": json.dumps(
        {
            "CONN_MAX_AGE": 60,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;",
            },
        }
    ),
    # The suite may block Node for several seconds. By default, uvicorn would close idle connections in this time.
    "UVICORN_TIMEOUT_KEEP_ALIVE": "60",
}

_SUBSCRIPTIONS = "Reserved subscription APIs > "
_WEBHOOKS = "servers of this package never send requests to URLs that clients choose"
_PULLING = "streams wake no workers: a project has tasks, and they can read the streams"
#: The tests that fail, with the reasons. They are about an extension of the protocol by which servers wake workers.
#: The suite runs them only with the option `subscriptions`.
EXCLUDED = {
    f"{_SUBSCRIPTIONS}creates and idempotently re-confirms a webhook subscription": _WEBHOOKS,
    f"{_SUBSCRIPTIONS}rejects unsafe webhook URLs": _WEBHOOKS,
    f"{_SUBSCRIPTIONS}webhook synchronous done auto-acks the wake snapshot": _WEBHOOKS,
    f"{_SUBSCRIPTIONS}webhook callback acks and fences stale wake generations": _WEBHOOKS,
    f"{_SUBSCRIPTIONS}adds and removes explicit subscription streams": _PULLING,
    f"{_SUBSCRIPTIONS}pull-wake claim, ack, and release use subscription-scoped leases": _PULLING,
}
#: How long, in seconds, the suite may take. Its tests wait for streams to expire and for long polls to end.
SUITE_TIME = 900.0
#: Matches the names of the tests of live readers, of closing and of producers.
LIVE = "Long-Poll|SSE|Live Modes|Closure|Producer"
#: Matches the names of all other tests.
OTHERS = f"^(?!.*({LIVE}))"
#: The minimum number of tests in the suite, by the pattern of their names.
COUNTS = {LIVE: 109, OTHERS: 228, "": 337}
#: daphne runs the tests of `LIVE`, and uvicorn all others. The slow tests run the whole suite on each server, with the
#: other engine.
SUITES = [
    pytest.param("daphne", "database", LIVE, id="daphne"),
    pytest.param("uvicorn", "redis", OTHERS, id="uvicorn", marks=[pytest.mark.postgres, pytest.mark.redis]),
    pytest.param("uvicorn", "database", "", id="all on uvicorn", marks=pytest.mark.slow),
    pytest.param(
        "daphne", "redis", "", id="all on daphne", marks=[pytest.mark.slow, pytest.mark.postgres, pytest.mark.redis]
    ),
]


@pytest.fixture(scope="module")
def pair(postgres_servers: ServerPool, redis_pool: RedisPool) -> Iterator[dict[str, Server]]:
    """A daphne server and a uvicorn server with the same PostgreSQL and Redis."""
    redis = redis_pool.get(find_binaries()[0].name)
    settings = {**SETTINGS, "REDIS_URL": redis.url, "KEY_PREFIX": unique("durable-")}
    servers = {kind: postgres_servers.make(kind, **settings) for kind in ("daphne", "uvicorn")}
    with servers["daphne"], servers["uvicorn"]:
        yield servers


async def read_result(script: str, *args: str, cookie: str = "") -> Any:
    """Run a script of Node. Return the JSON in the last line of its output."""
    headers = {"Cookie": f"{cookie}; csrftoken={CSRF}" if cookie else f"csrftoken={CSRF}", "X-CSRFToken": CSRF}
    variables = {"CABLE_TEST_HEADERS": json.dumps(headers)}
    status, output, errors = await run_script(script, *args, patience=SUITE_TIME, variables=variables)
    assert status == 0, errors
    return json.loads(output.strip().splitlines()[-1])


async def run_suite(server: Server, tmp_path: Path, pattern: str) -> dict[str, str]:
    """Run the tests of the suite whose names match a pattern. Return the errors of the failed tests by name."""
    url = f"http://127.0.0.1:{server.port}/runs/durable"
    results = await read_result("durable_conformance.mjs", url, str(tmp_path), *([pattern] if pattern else []))
    results = [result for result in results if not (pattern and result["state"] == "skipped")]
    assert {result["state"] for result in results} <= {"passed", "failed"}
    assert len(results) >= COUNTS[pattern]
    return {result["name"]: result["error"] for result in results if result["state"] == "failed"}


@pytest.mark.timeout(SUITE_TIME)
@pytest.mark.parametrize(("kind", "engine", "pattern"), SUITES)
async def test_the_conformance_suite_passes(
    kind: Kind, engine: str, pattern: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        if engine == "redis":
            server = request.getfixturevalue("pair")[kind]
        else:
            server = stack.enter_context(ServerPool(tmp_path, **VARIABLES).make(kind, **SETTINGS))
        failed = await run_suite(server, tmp_path, pattern)
    unexpected = {name: error for name, error in failed.items() if name not in EXCLUDED}
    assert unexpected == {}
    expected = set() if pattern == LIVE else set(EXCLUDED)
    assert failed.keys() == expected, "an excluded test passes, or is unknown"


@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.parametrize("reads", ["daphne", "uvicorn"])
async def test_the_npm_client_writes_and_reads(pair: dict[str, Server], reads: str, tmp_path: Path) -> None:
    require_node()
    (tmp_path / "node_modules").symlink_to(await asyncio.to_thread(node_modules))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    block = next(block for block in BLOCKS if block.text.startswith("// event_streams.js"))
    (tmp_path / "event_streams.js").write_text(block.text)
    user = unique("user")
    reading = pair[reads]
    writing = pair["uvicorn" if reads == "daphne" else "daphne"]
    cookie = await reading.sign_in(user)
    run = await writing.call("make_run")
    await writing.call("begin_run", run)
    urls = [f"http://127.0.0.1:{server.port}/runs" for server in (writing, reading)]
    script = asyncio.create_task(read_result("durable_client.mjs", str(tmp_path), *urls, run, cookie=cookie))
    for number in range(20):
        await writing.call("add_to_run", run, [f"{number} "])
    await writing.call("end_run", run)
    result = await script
    items = [{"number": number} for number in range(62)]
    assert result["readers"] == [{"items": items, "closed": True}] * 3
    assert result["resumed"] == items
    assert result["image"] == list(range(256))
    assert result["events"] == [{"a": 1}, {"a": 2}]
    events = result["run"]["items"]
    assert events[0]["event"] == "snapshot"
    assert events[0]["content"] + "".join(
        event["content"] for event in events[1:] if event["event"] == "chunk"
    ) == "".join(f"{number} " for number in range(20))
    assert result["run"]["closed"]
