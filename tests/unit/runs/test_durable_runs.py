"""The events of runs as durable streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.test import AsyncClient

from reliable_cable.runs.access import RunPermissions
from reliable_cable.runs.cable import snapshot_of
from reliable_cable.runs.http import durable_sources
from reliable_cable.runs.models import Run
from reliable_cable.runs.writing import awriting
from reliable_cable.stores.engine import get_engine
from tests.unit.runs.chat_client import is_left
from tests.unit.runs.durable_client import (
    POLICY,
    Events,
    change,
    log_in,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("durable_streams")]


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def run(browser: AsyncClient) -> Run:
    return await Run.objects.astart(owner=await User.objects.aget())


def run_path(run: Run, offset: str = "-1", live: str = "") -> str:
    return f"/runs/{run.pk}/durable?offset={offset}" + (f"&live={live}" if live else "")


async def test_the_events_of_a_run_are_a_closed_stream_at_its_end(browser: AsyncClient, run: Run) -> None:
    response = await browser.get(run_path(run))
    assert [event["event"] for event in response.json()] == ["snapshot"]
    assert "Stream-Closed" not in response.headers
    queued = response.headers["Stream-Next-Offset"]
    live = Events(await browser.get(run_path(run, "-1", "sse")))
    await live.next()
    async with awriting(run.pk) as out:
        out.write("Be")
        found = ""
        while '"Be"' not in found:
            found = "".join(await live.next())
        out.write("cause")
    while '"streamClosed":true' not in found:
        found = "".join(await live.next())
    assert '"complete"' in found
    assert await live.ended()
    response = await browser.get(run_path(run, queued))
    assert "".join(event.get("content", "") for event in response.json()) == "Because"
    assert response.headers["Stream-Closed"] == "true"
    tail = response.headers["Stream-Next-Offset"]
    response = await browser.get(run_path(run))
    assert response.json()[0]["content"] == "Because"
    assert response.headers["Stream-Closed"] == "true"
    assert response.headers["Stream-Next-Offset"] == tail
    for offset in (tail, "now"):
        response = await browser.get(run_path(run, offset))
        assert response.json() == []
        assert response.headers["Stream-Closed"] == "true"
        assert (await browser.get(run_path(run, offset, "long-poll"))).status_code == 204
    assert (await browser.head(run_path(run))).headers["Stream-Closed"] == "true"
    await Run.objects.aretry(run.pk)
    assert "Stream-Closed" not in (await browser.get(run_path(run))).headers
    await is_left()


async def test_trimmed_events_of_a_run_are_gone(browser: AsyncClient, run: Run, settings: Any) -> None:
    async with awriting(run.pk) as out:
        out.write("a")
    change(settings, STREAMS={"run:*": {"history_size": 1}, "durable:*": POLICY})
    offset = "0" * 16 + "_" + "0" * 16
    response = await browser.get(run_path(run, offset))
    assert response.status_code == 410
    assert response.json()["earliest"] == "-1"
    assert (await browser.get(run_path(run))).json()[0]["content"] == "a"
    await sync_to_async(get_engine().streams.forget)(run.stream)
    tail = (await browser.get(run_path(run))).headers["Stream-Next-Offset"]
    assert (await browser.get(run_path(run, tail))).status_code == 200
    assert (await browser.get(run_path(run, f"{'a' * 16}_{3:016d}"))).status_code == 410


async def test_the_events_of_a_run_after_the_store_has_lost_some(browser: AsyncClient, run: Run) -> None:
    async with awriting(run.pk) as out:
        out.write("a")
        async with asyncio.timeout(20):
            while not (await Run.objects.aget()).text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await sync_to_async(get_engine().streams.forget)(run.stream)
        out.write("b")
        async with asyncio.timeout(20):
            while len(events := (await browser.get(run_path(run))).json()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert "".join(event["content"] for event in events) == "ab"


async def test_long_streams_of_a_run(browser: AsyncClient, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_sources, "MAX_ENTRIES", 1)
    async with awriting(run.pk) as out:
        out.write("a")
    offset = "0" * 16 + "_" + "0" * 16
    found = []
    while True:
        response = await browser.get(run_path(run, offset))
        found += response.json()
        offset = response.headers["Stream-Next-Offset"]
        if "Stream-Closed" in response.headers:
            break
        assert "Stream-Up-To-Date" not in response.headers
    assert [event["event"] for event in found] == ["start", "chunk", "complete"]


async def test_a_run_that_is_tried_again_while_it_is_read_goes_on(
    browser: AsyncClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with awriting(run.pk) as out:
        out.write("a")
    attempt = awriting(run.pk)

    async def snapshot_before_retry(stream: str) -> Any:
        snapshot = await snapshot_of(stream)
        await Run.objects.aretry(run.pk)
        await attempt.__aenter__()
        return snapshot

    monkeypatch.setattr(durable_sources, "snapshot_of", snapshot_before_retry)
    response = await browser.get(run_path(run))
    monkeypatch.undo()
    assert [event["event"] for event in response.json()] == ["snapshot", "start"]
    assert "Stream-Closed" not in response.headers
    await attempt.__aexit__(None, None, None)
    response = await browser.get(run_path(run, response.headers["Stream-Next-Offset"]))
    assert [event["event"] for event in response.json()] == ["complete"]
    assert response.headers["Stream-Closed"] == "true"


async def test_runs_cannot_be_written_and_those_of_others_do_not_exist(
    browser: AsyncClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in (browser.put, browser.post, browser.delete):
        assert (await method(run_path(run))).status_code == 405
    other = await log_in("bob")
    assert (await other.get(run_path(run))).status_code == 404
    assert (await browser.get("/runs/x/durable")).status_code == 404
    assert (await browser.get(run_path(run, "x"))).status_code == 400
    monkeypatch.setattr(RunPermissions, "may_read", lambda *args: True)
    assert (await other.get(run_path(run))).status_code == 200
    await run.adelete()
    assert (await other.get(f"/runs/{run.pk}/durable")).status_code == 404
