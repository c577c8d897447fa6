"""The HTTP endpoints start, read and stop runs."""

from __future__ import annotations

import asyncio
import gc
import json
import uuid
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group, User
from django.core.asgi import get_asgi_application
from django.test import AsyncClient, Client

from reliable_cable import disconnect
from reliable_cable.auth.tokens import cable_token
from reliable_cable.connection import replay
from reliable_cable.consumer import get_hub
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.runs import cable
from reliable_cable.runs.http import reading, streaming
from reliable_cable.runs.http.ui_messages import build_message, ui_message
from reliable_cable.runs.models import Run, Status
from tests.unit.runs.chat_client import Reader, begun, body, get, is_left, only_run, post, written

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chats")]


@pytest.mark.parametrize("threads", [8, 0])
async def test_a_chat_is_started_streamed_and_completed(
    browser: AsyncClient, settings: Any, caplog: pytest.LogCaptureFixture, threads: int
) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "HANDLER_THREADS": threads}
    caplog.set_level("DEBUG")
    response = await post(browser)
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-accel-buffering"] == "no"
    assert "no-transform" in response.headers["cache-control"]
    run = await only_run()
    assert run.input == {"prompt": "why?"}
    reader = Reader(response)
    async with begun(run, reader, "Because") as out:
        assert get_hub().connections.all()
        out.write(".")
        out.count({"output_tokens": 2})
    await reader.read()
    assert reader.chunks[0] == {"type": "start", "messageId": str(run.pk)}
    assert build_message(reader.chunks) == ui_message(await only_run())
    await is_left()
    assert "why?" not in caplog.text
    assert "Because" not in caplog.text


async def test_a_chat_is_resumed_from_its_beginning(browser: AsyncClient) -> None:
    first = Reader(await post(browser))
    async with begun(await only_run(), first, "Be") as out:
        await first.close()
        await is_left()
        out.write("cause")
        second, third = [Reader(await get(browser, "/runs/chat/ann%2F1/stream")) for _ in range(2)]
        await second.read(until="Because")
        out.write(".")
    await second.read()
    await third.read()
    assert second.text == third.text == "Because."
    assert build_message(second.chunks) == build_message(third.chunks) == ui_message(await only_run())
    assert (await get(browser, "/runs/chat/ann/1/stream")).status_code == 204


async def test_the_newest_run_is_read_after_its_end(browser: AsyncClient) -> None:
    assert (await get(browser, "/runs/chat/ann/1/stream?ended")).status_code == 204
    for text in ("Because", "For"):
        await post(browser)
        async with written(await Run.objects.order_by("created_at").alast()) as out:  # type: ignore[arg-type]
            out.write(text)
        reader = Reader(await get(browser, "/runs/chat/ann/1/stream?ended"))
        await reader.read()
        assert reader.text == text
    newest = await Run.objects.order_by("created_at").alast()
    assert newest is not None
    assert build_message(reader.chunks) == ui_message(newest)
    assert (await get(browser, "/runs/chat/ann/1/stream")).status_code == 204


async def test_a_closed_request_does_not_stop_the_run(browser: AsyncClient) -> None:
    reader = Reader(await post(browser))
    async with begun(await only_run(), reader) as out:
        await reader.close()
        await asyncio.sleep(0.5)
        assert not out.stopped
    assert (await only_run()).status == Status.COMPLETED


async def test_a_chat_is_stopped(browser: AsyncClient) -> None:
    response = await post(browser)
    reader = Reader(response)
    async with begun(await only_run(), reader):
        for _ in range(2):
            assert (await post(browser, "/runs/chat/ann/1/stop")).status_code == 204
        await asyncio.sleep(20)
    await reader.read()
    assert [chunk["type"] for chunk in reader.chunks[-2:]] == ["abort", "finish"]
    assert (await only_run()).status == Status.STOPPED
    assert (await post(browser, "/runs/chat/ann/1/stop")).status_code == 204


async def test_a_queued_run_is_streamed_and_stopped(browser: AsyncClient) -> None:
    reader = Reader(await post(browser))
    run = await only_run()
    assert (await post(browser, f"/runs/{run.pk}/stop")).status_code == 204
    await reader.read()
    assert reader.chunks[-1]["type"] == "finish"


async def test_a_chat_with_an_active_run_refuses_another_one(browser: AsyncClient) -> None:
    await post(browser)
    run = await only_run()
    response = await post(browser)
    assert response.status_code == 409
    assert response.json()["run"] == str(run.pk)
    assert "in progress" in response.json()["error"]
    # A run whose writer has died does not block the chat.
    await Run.objects.aupdate(status=Status.RUNNING, lease_until="2000-01-01T00:00Z")
    assert (await post(browser)).status_code == 200
    assert [found.status async for found in Run.objects.order_by("created_at")] == [Status.FAILED, Status.QUEUED]


async def test_a_chat_accepts_a_question_while_its_last_run_is_being_stopped(browser: AsyncClient) -> None:
    await post(browser)
    await Run.objects.aupdate(status=Status.RUNNING, lease_until="2999-01-01T00:00Z")
    await post(browser, "/runs/chat/ann/1/stop")
    assert (await post(browser)).status_code == 200
    assert [run.status async for run in Run.objects.order_by("created_at")] == [Status.RUNNING, Status.QUEUED]


async def test_a_run_as_json(browser: AsyncClient) -> None:
    await post(browser)
    run = await only_run()
    async with written(run) as out:
        out.write("a")
        out.source("https://example.com/")
    response = await get(browser, f"/runs/{run.pk}")
    assert response.json() == {
        "id": str(run.pk),
        "attempt": 1,
        "status": "completed",
        "content": "a",
        "parts": [{"type": "source", "url": "https://example.com/", "title": "", "at": 1}],
        "usage": {},
        "error": "",
    }
    assert "no-store" in response.headers["cache-control"]


async def test_a_failed_run_ends_with_an_error(browser: AsyncClient) -> None:
    reader = Reader(await post(browser))
    run = await only_run()
    with pytest.raises(ZeroDivisionError):
        async with written(run) as out:
            out.write(str(1 // 0))
    await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": (await only_run()).error}


# -- interruptions -----------------------------------------------------------------------------------------------------


async def test_a_logout_ends_the_stream(browser: AsyncClient, member: User) -> None:
    reader = Reader(await post(browser))
    async with begun(await only_run(), reader):
        await sync_to_async(disconnect)(user=member, reconnect=False)
        await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": reading.LOGGED_OUT}
    await is_left()


async def test_a_logout_of_the_browser_ends_the_stream(browser: AsyncClient) -> None:
    reader = Reader(await post(browser))
    async with begun(await only_run(), reader):
        await browser.alogout()
        await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": reading.LOGGED_OUT}


async def test_a_token_that_expires_ends_the_stream(member: User, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_SECRET": "s" * 32, "JWT_LEEWAY": 0}
    reader = Reader(await post(AsyncClient(), headers={"X-JID": cable_token(member, ttl=4)}))
    await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": reading.LOGGED_OUT}


async def test_too_many_requests(browser: AsyncClient, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "RATE_LIMITS": {"connect": "1/h"}}
    first = Reader(await post(browser))
    async with begun(await only_run(), first):
        second = Reader(await get(browser, "/runs/chat/ann/1/stream"))
        await second.read()
    await first.read()
    assert second.chunks[-1] == {"type": "error", "errorText": reading.TOO_MANY}
    assert first.text == "a"


async def test_a_connection_that_fails_ends_the_stream(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(reading, "_consumer", fail)
    reader = Reader(await post(browser))
    await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": reading.LOST}
    assert "ZeroDivisionError" in caplog.text


async def test_a_reader_that_is_too_slow(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(await post(browser))
    async with begun(await only_run(), reader):
        (connection,) = get_hub().connections.all()
        connection.close(DisconnectReason.TOO_SLOW)
        await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": reading.LOST}
    await is_left()


async def test_a_drain_ends_the_stream(browser: AsyncClient) -> None:
    reader = Reader(await post(browser))
    async with begun(await only_run(), reader):
        await get_hub().drain(0)
        await reader.read()
        late = Reader(await get(browser, "/runs/chat/ann/1/stream"))
        await late.read()
    for each in (reader, late):
        assert each.chunks[-1] == {"type": "error", "errorText": reading.RESTARTING}
    await is_left()


async def test_a_run_that_is_deleted_ends_the_stream(browser: AsyncClient) -> None:
    reader = Reader(await post(browser))
    await Run.objects.all().adelete()
    await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": reading.GONE}


async def test_a_run_without_a_snapshot(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def snapshot_of(stream: str) -> None:
        """Return None, as if the run had been deleted after the subscription."""

    monkeypatch.setattr(cable, "snapshot_of", snapshot_of)
    monkeypatch.setattr(replay, "SNAPSHOT_DELAYS", (0,))
    reader = Reader(await post(browser))
    await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": reading.LOST}


async def test_a_silent_stream_has_comments(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SILENCE", 0.01)
    reader = Reader(await post(browser))
    async with written(await only_run()) as out:
        reading_ = asyncio.create_task(reader.read(until="a"))
        while not reader.pings:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        out.write("a")
        await reading_
    await reader.read()


async def test_a_slow_reader_loses_nothing(browser: AsyncClient, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "RUN_BROADCAST_INTERVAL": 0}
    reader = Reader(await post(browser))
    async with begun(await only_run(), reader) as out:
        for _ in range(400):
            out.write("b")
            await asyncio.sleep(0.001)
    await reader.read()
    assert reader.text == "a" + 400 * "b"


async def test_a_response_that_is_not_read_opens_nothing(browser: AsyncClient) -> None:
    response = await post(browser)
    response.close()
    await is_left()


@pytest.mark.parametrize("blocked", [True, False])
async def test_a_client_that_leaves_leaves_nothing_behind(browser: AsyncClient, blocked: bool) -> None:
    """The client leaves while the server is waiting for the client to read, or for the model to write."""
    sent: list[dict[str, Any]] = []
    left, full = asyncio.Event(), asyncio.Event()
    messages = iter([{"type": "http.request", "body": json.dumps(body()).encode()}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if blocked and b"text-delta" in message.get("body", b""):
            full.set()
            await asyncio.Event().wait()

    cookie = f"sessionid={browser.cookies['sessionid'].value}; csrftoken={32 * 'a'}"
    headers = [(b"host", b"testserver"), (b"cookie", cookie.encode()), (b"x-csrftoken", 32 * b"a")]
    scope = {"type": "http", "method": "POST", "path": "/runs/chat", "query_string": b"", "headers": headers}
    gc.disable()  # the garbage collector could close what the request left behind
    try:
        served = asyncio.create_task(get_asgi_application()(scope, receive, send))
        while not await Run.objects.aexists():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        async with written(await only_run()) as out:
            while not get_hub().connections.all():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            if blocked:
                out.write("a")
                await full.wait()
            left.set()
            await served
            await is_left()
            assert not out.stopped
    finally:
        gc.enable()
    assert sent[0]["status"] == 200


def test_wsgi_can_stop_but_not_stream(member: User) -> None:
    browser = Client()
    browser.force_login(member)
    response = browser.post("/runs/chat", body(), content_type="application/json")
    assert response.status_code == 501
    assert "ASGI" in response.json()["error"]
    assert browser.get("/runs/chat/ann/1/stream").status_code == 501
    run = Run.objects.start(owner=member, subject=Group.objects.get())
    assert browser.get(f"/runs/{run.pk}").json()["status"] == "queued"
    assert browser.post("/runs/chat/ann/1/stop").status_code == 204
    assert browser.get(f"/runs/{run.pk}").json()["status"] == "stopped"


def test_a_user_without_middlewares(settings: Any) -> None:
    settings.MIDDLEWARE = []
    assert Client().get(f"/runs/{uuid.uuid4()}").status_code == 404
