"""Durable streams while the store fails."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import AsyncClient

from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, InvalidPayload, StoreError
from reliable_cable.runs.durable import storage
from reliable_cable.runs.http import durable_sources
from reliable_cable.runs.models import Run
from tests.unit.runs import durable_client
from tests.unit.runs.chat_client import is_left
from tests.unit.runs.durable_client import Events, append, create, path

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("durable_streams")]


def fail(monkeypatch: pytest.MonkeyPatch, source: type[durable_sources.Source], call: str) -> None:
    """Let the store fail whenever this method of a source is called."""

    async def failing(*args: Any) -> None:
        raise StoreError("The database does not answer.")

    monkeypatch.setattr(source, call, failing)


@pytest.mark.parametrize("live", ["", "long-poll", "sse"])
async def test_a_request_to_read_is_refused(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch, live: str) -> None:
    await create(browser)
    fail(monkeypatch, durable_sources.StreamSource, "read")
    response = await browser.get(path(offset="-1", live=live))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.json() == {"error": "The store failed. Try again."}
    assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("method", ["get", "head"])
async def test_a_request_to_read_a_run_is_refused(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run = await Run.objects.astart(owner=await User.objects.aget())
    fail(monkeypatch, durable_sources.RunSource, "tail")
    response = await getattr(browser, method)(f"/runs/{run.pk}/durable?offset=now")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


async def test_a_long_poll_is_refused_if_the_store_fails_while_it_waits(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(browser)
    fail(monkeypatch, durable_sources.StreamSource, "read")
    monkeypatch.setattr(durable_client.Rules, "long_poll_time", 20)
    response = await browser.get(path(offset="now", live="long-poll"))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    await is_left()


async def test_a_live_response_ends(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(browser)
    events = Events(await browser.get(path(offset="-1", live="sse")))
    await events.next()
    fail(monkeypatch, durable_sources.StreamSource, "read")
    assert await events.ended()
    await is_left()


@pytest.mark.parametrize(
    ("error", "message"), [(BroadcastError("x"), "Try again."), (BroadcastUncertain("x"), "It is unknown")]
)
async def test_a_request_to_append_is_refused(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    await create(browser)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "broadcast_batch", _raising(error))
        response = await append(browser)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert message in response.json()["error"]
    assert (await append(browser, body="c")).status_code == 204
    assert (await browser.get(path())).content == b"ac"


async def test_a_bug_is_no_outage(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(browser)
    monkeypatch.setattr(storage, "broadcast_batch", _raising(InvalidPayload("x")))
    with pytest.raises(InvalidPayload):
        await append(browser)


def _raising(error: Exception) -> Any:
    def call(*args: Any, **kwargs: Any) -> None:
        raise error

    return call
