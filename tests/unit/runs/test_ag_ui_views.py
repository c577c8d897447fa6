"""The HTTP endpoints of runs serve clients that speak AG-UI."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group, User
from django.test import AsyncClient, Client, override_settings

from reliable_cable import disconnect
from reliable_cable.runs.http import reading
from reliable_cable.runs.http.ag_ui import ag_ui_messages, build_messages
from reliable_cable.runs.models import Run, Status
from tests.unit.runs import chat_client
from tests.unit.runs.chat_client import begun, is_left, only_run, post, written

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chats")]

RUN = "/runs/ag-ui"
CONNECT = "/runs/ag-ui/connect"
QUESTION = {"id": "q1", "role": "user", "content": "why?"}


class Reader(chat_client.Reader):
    """Reads a streaming response, and collects its events."""

    has_mark = False

    @property
    def text(self) -> str:
        return "".join(message.get("content", "") for message in self.messages if message["role"] == "assistant")

    @property
    def messages(self) -> list[dict[str, Any]]:
        return build_messages(self.chunks)

    @property
    def types(self) -> list[str]:
        return [chunk["type"] for chunk in self.chunks]


def body(*messages: dict[str, Any], thread: str = "ann/1", **values: Any) -> dict[str, Any]:
    others = {"runId": "r1", "tools": [], "context": [], "state": {}, "forwardedProps": {}}
    return {"threadId": thread, "messages": list(messages) or [QUESTION], **others, **values}


async def ask(client: AsyncClient, *messages: dict[str, Any], path: str = RUN, **values: Any) -> Any:
    return await post(client, path, body(*messages, **values))


async def test_a_run_is_started_streamed_and_completed(browser: AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    response = await ask(browser)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "x-vercel-ai-ui-message-stream" not in response.headers
    run = await only_run()
    assert run.input == {"prompt": "why?"}
    reader = Reader(response)
    async with begun(run, reader, "Because") as out:
        out.write(".")
    await reader.read()
    ids = {"threadId": "ann/1", "runId": str(run.pk)}
    assert reader.chunks[0] == {"type": "RUN_STARTED", **ids, "protocolVersion": "1.0"}
    assert reader.chunks[-1] == {"type": "RUN_FINISHED", **ids}
    assert reader.messages == ag_ui_messages(await only_run())
    await is_left()
    assert "why?" not in caplog.text
    assert "Because" not in caplog.text


async def test_late_readers(browser: AsyncClient) -> None:
    first = Reader(await ask(browser))
    run = await only_run()
    async with begun(run, first, "Be") as out:
        await first.close()
        await is_left()
        out.write("cause")
        second = Reader(await ask(browser, path=CONNECT))
        await second.read(until="Because")
        # A client that lost its connection may send a run request again, instead of a connect request.
        third = Reader(await ask(browser, QUESTION, *first.messages))
        await third.read(until="Because")
        assert third.types[:3] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "MESSAGES_SNAPSHOT"]
        out.write(".")
    await second.read()
    await third.read()
    expected = [QUESTION, *ag_ui_messages(await only_run())]
    assert build_messages(second.chunks, [QUESTION]) == third.messages == expected
    assert second.text == "Because."
    # After the end of the run, a client that lacks the end of the answer is sent the whole answer. Other clients are
    # sent nothing.
    for path, messages in ((CONNECT, [QUESTION]), (CONNECT, first.messages), (RUN, first.messages)):
        reader = Reader(await ask(browser, *messages, path=path))
        await reader.read()
        snapshots = ["MESSAGES_SNAPSHOT"] if messages[0] is QUESTION else 2 * ["MESSAGES_SNAPSHOT"]
        assert reader.types == ["RUN_STARTED", *snapshots, "RUN_FINISHED"]
        assert reader.messages == (expected if messages[0] is QUESTION else expected[1:])
    response = await ask(browser, QUESTION, {"id": "a1", "role": "assistant"}, path=CONNECT)
    assert response.content == b""
    fresh = Reader(await post(browser, CONNECT, {**body(), "messages": []}))
    await fresh.read()
    assert fresh.messages == expected[1:]
    assert await Run.objects.acount() == 1


async def test_a_thread_without_a_run(browser: AsyncClient) -> None:
    response = await ask(browser, path=CONNECT)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_a_stop(browser: AsyncClient) -> None:
    reader = Reader(await ask(browser))
    async with begun(await only_run(), reader):
        assert (await ask(browser)).status_code == 409
        assert (await post(browser, f"/runs/{reader.chunks[0]['runId']}/stop", {})).status_code == 204
        await asyncio.sleep(20)
    await reader.read()
    assert reader.chunks[-1]["outcome"] == {"type": "cancelled"}
    assert (await only_run()).status == Status.STOPPED


async def test_errors(browser: AsyncClient, member: User) -> None:
    reader = Reader(await ask(browser))
    with pytest.raises(ZeroDivisionError):
        async with written(await only_run()) as out:
            out.write(str(1 // 0))
    await reader.read()
    assert reader.chunks[-1] == {"type": "RUN_ERROR", "message": (await only_run()).error, "code": "failed"}
    reader = Reader(await ask(browser))
    run = await Run.objects.alatest("created_at")
    async with begun(run, reader):
        await sync_to_async(disconnect)(user=member, reconnect=False)
        await reader.read()
    assert reader.types[-2:] == ["TEXT_MESSAGE_END", "RUN_ERROR"]
    assert reader.chunks[-1] == {"type": "RUN_ERROR", "message": reading.LOGGED_OUT, "code": "interrupted"}
    await is_left()


async def test_a_result_of_a_tool_of_the_page(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Any, user: Any, subject: Any, message: Any) -> Run:
        values = {"role": message.role, "text": message.text, "body": dict(message.body)}
        return Run.objects.start(owner=user, subject=subject, input=values)

    monkeypatch.setattr(chat_client.Chats, "start", start)
    result = {"id": "x", "role": "tool", "toolCallId": "c1", "content": [{"type": "text", "text": "20"}, {"type": "?"}]}
    assert (await ask(browser, QUESTION, result, forwardedProps={"a": 1})).status_code == 200
    asked = (await only_run()).input
    assert (asked["role"], asked["text"], asked["body"]["toolCallId"]) == ("tool", "20", "c1")
    assert asked["body"]["forwardedProps"] == {"a": 1}


@pytest.mark.parametrize("path", [RUN, CONNECT])
@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"{", "must be JSON"),
        (b"[]", "'threadId' and 'messages'"),
        ({"messages": []}, "'threadId'"),
        ({"threadId": 1, "messages": []}, "'threadId'"),
        ({"threadId": "x" * 256, "messages": []}, "at most 255"),
        ({"threadId": "ann/1"}, "'messages' must be a list"),
        (body(1), "list of objects"),  # type: ignore[arg-type]
        (body({"role": "user"}), "'id' and 'role'"),
        (body({"id": "m", "role": 1}), "'role'"),
    ],
)
async def test_bodies_that_are_not_valid(browser: AsyncClient, path: str, sent: Any, error: str) -> None:
    response = await post(browser, path, sent)
    assert response.status_code == 400
    assert error in response.json()["error"]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "one of the user"),
        ([{"id": "a", "role": "assistant", "content": "a"}], "one of the user"),
        ([{"id": "a", "role": "user"}], "'content'"),
        ([{"id": "a", "role": "user", "content": [1]}], "'content'"),
    ],
)
async def test_last_messages_that_cannot_be_answered(browser: AsyncClient, messages: Any, error: str) -> None:
    response = await post(browser, RUN, {**body(), "messages": messages})
    assert response.status_code == 400
    assert error in response.json()["error"]
    assert await Run.objects.acount() == 0


async def test_a_body_that_is_too_large(browser: AsyncClient) -> None:
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=1000):
        for path in (RUN, CONNECT):
            response = await ask(browser, {**QUESTION, "content": "x" * 1000}, path=path)
            assert response.status_code == 413
            assert "1000 bytes" in response.json()["error"]


@pytest.mark.parametrize("user", ["bob", None])
async def test_the_threads_of_other_people_do_not_exist(browser: AsyncClient, user: str | None) -> None:
    await ask(browser)
    other = AsyncClient()
    if user is not None:
        await other.aforce_login(await User.objects.acreate(username=user))
    for path in (RUN, CONNECT):
        for thread in ("ann/1", "unknown", "\ud800"):
            response = await post(other, path, json.dumps(body(thread=thread)).encode())
            assert (response.status_code, response.json()["error"]) == (404, "There is no such chat.")
    # A message with the id of another thread's run gives no access to that run.
    message = {"id": f"{(await only_run()).pk}-1", "role": "assistant", "content": ""}
    await Group.objects.acreate(name="ann/2")
    assert (await ask(browser, message, thread="ann/2")).status_code == 400


async def test_csrf_tokens_and_methods(member: User) -> None:
    browser = AsyncClient(enforce_csrf_checks=True)
    await browser.aforce_login(member)
    for path in (RUN, CONNECT):
        assert (await ask(browser, path=path)).status_code == 403
        response = await browser.get(path)
        assert (response.status_code, response.headers["allow"]) == (405, "POST, OPTIONS")


def test_wsgi_cannot_stream(member: User) -> None:
    browser = Client()
    browser.force_login(member)
    for path in (RUN, CONNECT):
        assert browser.post(path, body(), content_type="application/json").status_code == 501
