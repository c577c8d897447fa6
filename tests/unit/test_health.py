"""`GET /health` reports whether the server can serve, and a flood of requests costs only one check."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from django.test import override_settings

from reliable_cable.exceptions import StoreError
from reliable_cable.http import CableHTTP, health
from reliable_cable.hub.current import begin_draining, close_hub, get_hub
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.engine import get_engine
from tests.unit.http_fronts import Answer, Receiver, call, elsewhere, make_scope
from tests.unit.test_http import SETTINGS, configured

__all__ = ["configured"]

UNANSWERED = {"error": "The stream store did not answer within 1.5 s."}


async def probe(method: str = "GET") -> Answer:
    """Request `/health`, and return the response."""
    answer = await call(CableHTTP(elsewhere), make_scope(method, "/health"), Receiver([]))
    assert answer is not None
    return answer


class Store:
    """Takes the place of reads of the stream store. A test controls when and how a read ends."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def position(self, stream: str) -> StreamPosition:
        """Wait until the test lets the store answer."""
        self.calls += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return StreamPosition("", 0)


@pytest.fixture
def store(configured: None) -> Iterator[Store]:
    """A `Store`, which replaces the reads of positions in the stream store."""
    controlled = Store()
    with mock.patch.object(get_engine().streams, "aposition", controlled.position):
        yield controlled


def let_time_pass(seconds: float) -> Any:
    """Return a patch that sets the clock of the event loop ahead."""
    loop = asyncio.get_running_loop()
    now = loop.time
    return mock.patch.object(loop, "time", mock.Mock(side_effect=lambda: now() + seconds))


async def test_a_server_that_can_serve_is_healthy() -> None:
    answer = await probe()
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer["Content-Type"] == "application/json"
    assert "no-store" in answer["Cache-Control"]
    head = await probe("HEAD")
    assert (head.status_code, head.content, head["Content-Length"]) == (200, b"", str(len(answer.content)))
    posted = await probe("POST")
    assert (posted.status_code, posted["Allow"]) == (405, "GET, HEAD")


async def test_a_store_that_fails_is_reported_without_its_error_and_logged(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (StoreError("db1 refused"), OSError("db1 refused")):
        store.error = error
        with let_time_pass(store.calls * 10):
            answer = await probe()
        assert (answer.status_code, answer.json()) == (503, UNANSWERED)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "db1 refused" in caplog.text


async def test_a_flood_of_requests_causes_one_check_and_one_line(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.error = StoreError("down")
    store.answers.clear()
    probes = [asyncio.create_task(probe()) for _ in range(100)]
    await asyncio.sleep(0)
    store.answers.set()
    # However slow the machine is, all requests come within the interval.
    with mock.patch.object(health, "CHECK_INTERVAL", 1000):
        assert {(await each).status_code for each in probes} == {503}
        assert [(await probe()).status_code for _ in range(100)] == [503] * 100
    assert store.calls == 1
    assert len(caplog.records) == 1


async def test_the_store_is_checked_again_after_a_second(store: Store) -> None:
    store.error = StoreError("down")
    assert (await probe()).status_code == 503
    store.error = None
    with let_time_pass(health.CHECK_INTERVAL):
        assert (await probe()).status_code == 200
    assert store.calls == 2


async def test_a_store_that_hangs_is_reported_and_asked_once_until_it_answers(store: Store) -> None:
    store.answers.clear()
    with mock.patch.object(health, "ANSWER_TIMEOUT", 0.01):
        for _ in range(3):
            assert (await probe()).status_code == 503
        with let_time_pass(health.CHECK_INTERVAL + 1):
            assert (await probe()).status_code == 503
        assert store.calls == 1
        store.answers.set()
        for _ in range(5):
            await asyncio.sleep(0)  # so that the check ends
    with let_time_pass(health.CHECK_INTERVAL + 1):
        assert (await probe()).status_code == 200
    assert store.calls == 2


async def test_a_check_without_an_answer_is_given_up(store: Store) -> None:
    store.answers.clear()
    with mock.patch.object(health, "CHECK_TIMEOUT", 0.01):
        assert (await probe()).status_code == 503
    store.answers.set()
    with let_time_pass(health.CHECK_INTERVAL):
        assert (await probe()).status_code == 200


async def test_a_request_that_is_cancelled_does_not_cancel_the_check_of_others(store: Store) -> None:
    store.answers.clear()
    first, second = asyncio.create_task(probe()), asyncio.create_task(probe())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    store.answers.set()
    assert (await second).status_code == 200
    assert store.calls == 1


async def test_other_settings_have_their_own_checks(store: Store) -> None:
    store.error = StoreError("down")
    assert (await probe()).status_code == 503
    with override_settings(RELIABLE_CABLE={**SETTINGS, "SECRET": "another"}):
        assert (await probe()).status_code == 200


async def test_a_server_that_drains_says_so_and_asks_no_store(store: Store) -> None:
    hub = get_hub()
    try:
        await hub.drain(0)
        answer = await probe()
        assert (answer.status_code, answer.json()) == (503, {"error": "This server is about to stop."})
        assert store.calls == 0
    finally:
        await close_hub()


async def test_a_server_that_stops_before_its_first_client_says_so(store: Store) -> None:
    begin_draining()
    assert (await probe()).status_code == 503


async def test_a_request_creates_no_hub() -> None:
    with mock.patch("reliable_cable.hub.current.Hub", side_effect=AssertionError):
        assert (await probe()).status_code == 200


def test_each_event_loop_has_its_own_checks(configured: None) -> None:
    assert [asyncio.run(probe()).status_code for _ in range(3)] == [200] * 3
    assert len(health._checks) == 1, "the checks of closed loops would keep the loops in memory"
