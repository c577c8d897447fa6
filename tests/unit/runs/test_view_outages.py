"""The HTTP endpoints of runs while the database fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import InterfaceError, OperationalError, ProgrammingError
from django.db.backends.utils import CursorWrapper
from django.test import AsyncClient

from reliable_cable.runs.http import durable_sources
from reliable_cable.runs.models import Run
from tests.unit.runs import durable_client
from tests.unit.runs.chat_client import Chats, body, chat_settings, is_left
from tests.unit.runs.durable_client import Events, append, create, path
from tests.unit.runs.test_ag_ui_views import body as agent_body

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("durable_streams")]

PROMPT = "a secret question"
#: An error message of a database. The second line quotes the statement.
AWAY = f"the server closed the connection\nLINE 1: INSERT ... '{PROMPT}'"
SESSIONS, RUNS, STREAMS = "django_session", "reliable_cable_runs_run", "reliable_cable_runs_durablestream"
CHAT = {"data": body(text=PROMPT), "content_type": "application/json"}
AGENT = {"data": agent_body({"id": "m1", "role": "user", "content": PROMPT}), "content_type": "application/json"}

Fail = Callable[..., None]


@pytest.fixture(autouse=True)
def _chats(settings: Any, durable_streams: None) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "RUN_CHATS": chat_settings()["RUN_CHATS"]}


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """A function that takes the name of a table, and makes all later statements with this name fail."""
    execute = CursorWrapper.execute

    def fail(table: str, error: Exception | None = None) -> None:
        def failing(self: CursorWrapper, sql: str, params: Any = None) -> Any:
            if table in sql:
                raise error or OperationalError(AWAY)
            return execute(self, sql, params)

        monkeypatch.setattr(CursorWrapper, "execute", failing)

    return fail


@pytest.mark.parametrize("error", [OperationalError(AWAY), InterfaceError(AWAY)])
@pytest.mark.parametrize(
    ("table", "method", "url", "options"),
    [
        (SESSIONS, "get", "/runs/{run}", {}),
        (SESSIONS, "put", "/runs/durable/ann/2", {}),
        (RUNS, "get", "/runs/{run}", {}),
        (RUNS, "post", "/runs/{run}/stop", {}),
        (RUNS, "post", "/runs/chat", CHAT),
        (RUNS, "get", "/runs/chat/ann/1/stream", {}),
        (RUNS, "post", "/runs/chat/ann/1/stop", {}),
        (RUNS, "post", "/runs/ag-ui", AGENT),
        (RUNS, "post", "/runs/ag-ui/connect", AGENT),
        (RUNS, "get", "/runs/{run}/durable?offset=-1", {}),
        (RUNS, "get", "/runs/{run}/durable?offset=-1&live=sse", {}),
        (RUNS, "head", "/runs/{run}/durable", {}),
        (STREAMS, "get", "/runs/durable/ann/1", {}),
        (STREAMS, "get", "/runs/durable/ann/1?offset=now&live=long-poll", {}),
        (STREAMS, "head", "/runs/durable/ann/1", {}),
        (STREAMS, "put", "/runs/durable/ann/2", {}),
        (STREAMS, "post", "/runs/durable/ann/1", {"data": PROMPT, "content_type": "text/plain"}),
        (STREAMS, "delete", "/runs/durable/ann/1", {}),
    ],
)
async def test_a_request_is_refused_and_logged_once(
    browser: AsyncClient,
    fail: Fail,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    table: str,
    method: str,
    url: str,
    options: dict[str, Any],
) -> None:
    run = await Run.objects.astart(owner=await User.objects.aget(), input={"prompt": PROMPT})
    await create(browser)
    fail(table, error)
    response = await getattr(browser, method)(url.format(run=run.pk), **options)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    if method != "head":
        assert response.json()["error"].startswith("The database failed.")
        assert ("It is unknown" in response.json()["error"]) == (method != "get")
    assert PROMPT not in response.content.decode()
    (logged,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logged.getMessage().endswith("was refused, because the database failed: the server closed the connection")
    assert logged.exc_info is None


async def test_a_bug_is_no_outage(browser: AsyncClient, fail: Fail) -> None:
    fail(RUNS, ProgrammingError("no such column"))
    with pytest.raises(ProgrammingError):
        await browser.get("/runs/chat/ann/1/stream")


async def test_an_error_of_the_project_is_no_outage(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise LookupError("a bug")

    monkeypatch.setattr(Chats, "subject", broken)
    with pytest.raises(LookupError, match="a bug"):
        await browser.get("/runs/chat/ann/1/stream")


async def test_a_live_response_ends_so_that_the_client_reads_on(
    browser: AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(browser)
    events = Events(await browser.get(path(offset="-1", live="sse")))
    await events.next()
    monkeypatch.setattr(durable_sources, "reload", _away)
    assert await events.ended()
    assert [record.getMessage() for record in caplog.records if record.name == "reliable_cable"] == [
        "GET /runs/durable/ann/1 was ended early, because the database failed: the server closed the connection"
    ]
    await is_left()


async def test_a_live_response_with_a_bug_ends_with_its_error(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise LookupError("a bug")

    await create(browser)
    events = Events(await browser.get(path(offset="-1", live="sse")))
    await events.next()
    monkeypatch.setattr(durable_sources, "reload", broken)
    with pytest.raises(LookupError, match="a bug"):
        await events.ended()
    await is_left()


async def test_a_long_poll_is_refused_if_the_database_fails_while_it_waits(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(browser)
    monkeypatch.setattr(durable_client.Rules, "long_poll_time", 20)
    monkeypatch.setattr(durable_sources, "reload", _away)
    response = await browser.get(path(offset="now", live="long-poll"))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    await is_left()


async def test_a_request_after_the_outage_succeeds(
    browser: AsyncClient, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(browser)
    fail(STREAMS)
    assert (await append(browser)).status_code == 503
    monkeypatch.undo()
    assert (await append(browser)).status_code == 204
    assert (await browser.get(path())).content == b"ab"


def _away(*args: Any) -> Any:
    raise OperationalError(AWAY)
