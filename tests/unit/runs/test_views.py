"""The HTTP endpoints of runs."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connections, models
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path

from reliable_cable import disconnect
from reliable_cable.auth.tokens import cable_token
from reliable_cable.consumer import get_hub
from reliable_cable.runs.access import RunPermissions
from reliable_cable.runs.chats import ChatMessage, RunChats
from reliable_cable.runs.http import reading, views
from reliable_cable.runs.http.ui_messages import build_message, ui_message
from reliable_cable.runs.models import Run, Status
from reliable_cable.runs.writing import awriting

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]

urlpatterns = [path("runs/", include("reliable_cable.runs.urls"))]

QUESTION = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "why?"}]}


class Chats(RunChats):
    """A chat is a group, whose name is that of its only member, before a slash."""

    def subject(self, user: Any, chat: str) -> models.Model:
        group = Group.objects.get(name=chat)
        if chat.partition("/")[0] != user.get_username():
            raise PermissionDenied
        return group

    def start(self, user: Any, subject: models.Model, message: ChatMessage) -> Run:
        match message.text:
            case "refuse":
                raise ValidationError("Ask something else.")
            case "forbid":
                raise PermissionDenied
            case "other":
                return Run.objects.start(owner=user)
        return Run.objects.start(owner=user, subject=subject, input={"prompt": message.text})


class Nothing(RunChats):
    """A class without methods."""


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "RUN_CHATS": f"{__name__}.Chats"}


@pytest.fixture
def owner() -> User:
    Group.objects.create(name="ann/1")
    return User.objects.create(username="ann")


@pytest.fixture
async def client(owner: User) -> AsyncClient:
    client = AsyncClient()
    await client.aforce_login(owner)
    return client


def body(chat: str = "ann/1", text: str = "why?", **values: Any) -> dict[str, Any]:
    message = {**QUESTION, "parts": [{"type": "text", "text": text}]}
    return {"id": chat, "messages": [message], "trigger": "submit-message", **values}


async def post(client: AsyncClient, path: str = "/runs/chat", data: Any = None, **options: Any) -> Any:
    return await client.post(path, body() if data is None else data, content_type="application/json", **options)


async def get(client: AsyncClient, path: str, **options: Any) -> Any:
    return await client.get(path, **options)


class Reader:
    """Reads a stream, and collects its chunks."""

    def __init__(self, response: Any) -> None:
        assert response.status_code == 200, response.content
        self._parts = aiter(response)
        self.chunks: list[dict[str, Any]] = []
        self.pings = 0
        self.done = False

    @property
    def text(self) -> str:
        return "".join(chunk["delta"] for chunk in self.chunks if chunk["type"] == "text-delta")

    async def read(self, until: str | None = None) -> None:
        """Read until the text is as given, or to the end."""
        async with asyncio.timeout(20):
            while until is None or self.text != until:
                try:
                    part = await anext(self._parts)
                except StopAsyncIteration:
                    assert until is None
                    assert self.done
                    return
                for event in part.decode().removesuffix("\n\n").split("\n\n"):
                    self.pings += event == ": ping"
                    self.done = event == "data: [DONE]"
                    if event.startswith("data: {"):
                        self.chunks.append(json.loads(event.removeprefix("data: ")))

    async def close(self) -> None:
        """Leave, as a server does when the client has disconnected."""
        await self._parts.aclose()


@asynccontextmanager
async def written(run: Run) -> AsyncIterator[Any]:
    async with awriting(run.pk) as out:
        yield out


async def is_left() -> None:
    """Wait until no reader of a run has left anything behind."""
    hub = get_hub()
    async with asyncio.timeout(10):
        while hub.connections.all() or any("RunConsumer" in repr(task) for task in asyncio.all_tasks()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def only_run() -> Run:
    return await Run.objects.aget()


async def test_a_chat_is_started_streamed_and_completed(client: AsyncClient) -> None:
    response = await post(client)
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-accel-buffering"] == "no"
    assert "no-transform" in response.headers["cache-control"]
    run = await only_run()
    assert run.input == {"prompt": "why?"}
    reader = Reader(response)
    async with written(run) as out:
        out.write("Because")
        await reader.read(until="Because")
        assert get_hub().connections.all()
        out.write(".")
        out.count({"output_tokens": 2})
    await reader.read()
    assert reader.chunks[0] == {"type": "start", "messageId": str(run.pk)}
    assert build_message(reader.chunks) == ui_message(await only_run())
    await is_left()


async def test_a_chat_is_resumed_from_its_beginning(client: AsyncClient) -> None:
    first = Reader(await post(client))
    run = await only_run()
    async with written(run) as out:
        out.write("Be")
        await first.read(until="Be")
        await first.close()
        await is_left()
        out.write("cause")
        second, third = [Reader(await get(client, "/runs/chat/ann%2F1/stream")) for _ in range(2)]
        await second.read(until="Because")
        out.write(".")
    await second.read()
    await third.read()
    assert second.text == third.text == "Because."
    assert build_message(second.chunks) == build_message(third.chunks) == ui_message(await only_run())
    assert (await get(client, "/runs/chat/ann/1/stream")).status_code == 204


async def test_a_closed_request_does_not_stop_the_run(client: AsyncClient) -> None:
    reader = Reader(await post(client))
    run = await only_run()
    async with written(run) as out:
        out.write("a")
        await reader.read(until="a")
        await reader.close()
        await asyncio.sleep(0.5)
        assert not out.stopped
    assert (await only_run()).status == Status.COMPLETED


async def test_a_chat_is_stopped(client: AsyncClient) -> None:
    response = await post(client)
    run = await only_run()
    reader = Reader(response)
    async with written(run) as out:
        out.write("a")
        await reader.read(until="a")
        for _ in range(2):
            assert (await post(client, "/runs/chat/ann/1/stop")).status_code == 204
        await asyncio.sleep(20)
    await reader.read()
    assert [chunk["type"] for chunk in reader.chunks[-2:]] == ["abort", "finish"]
    assert (await only_run()).status == Status.STOPPED
    assert (await post(client, "/runs/chat/ann/1/stop")).status_code == 204


async def test_a_queued_run_is_streamed_and_stopped(client: AsyncClient) -> None:
    reader = Reader(await post(client))
    run = await only_run()
    assert (await post(client, f"/runs/{run.pk}/stop")).status_code == 204
    await reader.read()
    assert reader.chunks[-1]["type"] == "finish"


async def test_a_chat_with_an_active_run_refuses_another_one(client: AsyncClient) -> None:
    await post(client)
    run = await only_run()
    response = await post(client)
    assert response.status_code == 409
    assert response.json()["run"] == str(run.pk)
    assert "in progress" in response.json()["error"]
    # A run whose writer has died does not block the chat.
    await Run.objects.aupdate(status=Status.RUNNING, lease_until="2000-01-01T00:00Z")
    assert (await post(client)).status_code == 200
    assert [found.status async for found in Run.objects.order_by("created_at")] == [Status.FAILED, Status.QUEUED]


async def test_a_chat_accepts_a_question_while_its_last_run_is_being_stopped(client: AsyncClient) -> None:
    await post(client)
    async with written(await only_run()) as out:
        out.write("a")
        await post(client, "/runs/chat/ann/1/stop")
        assert (await post(client)).status_code == 200
        await asyncio.sleep(20)
    assert [run.status async for run in Run.objects.order_by("created_at")] == [Status.STOPPED, Status.QUEUED]


async def test_a_run_as_json(client: AsyncClient) -> None:
    await post(client)
    run = await only_run()
    async with written(run) as out:
        out.write("a")
        out.source("https://example.com/")
    response = await get(client, f"/runs/{run.pk}")
    assert response.json() == {
        "id": str(run.pk),
        "attempt": 1,
        "status": "completed",
        "content": "a",
        "parts": [{"type": "source", "url": "https://example.com/", "title": "", "at": 1}],
        "usage": {},
        "error": "",
    }
    assert response.headers["cache-control"] == "no-store"


async def test_a_failed_run_ends_with_an_error(client: AsyncClient) -> None:
    reader = Reader(await post(client))
    run = await only_run()
    with pytest.raises(ZeroDivisionError):
        async with written(run) as out:
            out.write(str(1 // 0))
    await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": (await only_run()).error}


@pytest.mark.parametrize("user", ["bob", None])
async def test_the_runs_of_other_people_do_not_exist(client: AsyncClient, user: str | None) -> None:
    await post(client)
    run = await only_run()
    other = AsyncClient()
    if user is not None:
        await other.aforce_login(await User.objects.acreate(username=user))
    for response in (
        await post(other),
        await get(other, "/runs/chat/ann/1/stream"),
        await post(other, "/runs/chat/ann/1/stop"),
        await get(other, f"/runs/{run.pk}"),
        await post(other, f"/runs/{run.pk}/stop"),
    ):
        assert response.status_code == 404
        assert response.json()["error"].startswith("There is no such ")
    assert (await only_run()).status == Status.QUEUED


@pytest.mark.parametrize("chat", ["ann/2", "%00", "x" * 300, "%ED%A0%80"])
async def test_unknown_chats_and_runs(client: AsyncClient, chat: str) -> None:
    assert (await get(client, f"/runs/chat/{chat}/stream")).status_code == 404
    assert (await post(client, f"/runs/chat/{chat}/stop")).status_code == 404
    assert (await get(client, f"/runs/{chat.replace('/', '-')}")).status_code == 404
    assert (await get(client, f"/runs/{uuid.uuid4()}")).status_code == 404


class Readable(RunPermissions):
    """Lets everybody read, and nobody stop."""

    def may_read(self, user: Any, run: Run) -> bool:
        return True

    def may_stop(self, user: Any, run: Run) -> bool:
        return False


async def test_a_user_who_may_only_read(client: AsyncClient, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "RUN_PERMISSIONS": f"{__name__}.Readable"}
    await post(client)
    assert (await post(client, "/runs/chat/ann/1/stop")).status_code == 404
    assert (await get(client, f"/runs/{(await only_run()).pk}")).status_code == 200


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "must be JSON"),
        (b"{", "must be JSON"),
        (b"\xff", "must be JSON"),
        (b'{"id": NaN}', "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        ([], "must be a JSON object"),
        ({}, "'id'"),
        (body(chat=7), "'id'"),  # type: ignore[arg-type]
        (body(chat="x" * 256), "'id'"),
        (body(messages=None), "'messages'"),
        (body(messages=[]), "'messages'"),
        (body(messages=["a"]), "must be an object"),
        (body(message={"parts": [7]}), "'parts'"),
        (body(message={"role": "user"}), "'parts'"),
        (body(trigger=7), "'trigger'"),
        (body(messageId={}), "'messageId'"),
        (body(text="refuse"), "Ask something else."),
    ],
)
async def test_bodies_that_are_not_valid(client: AsyncClient, data: Any, error: str) -> None:
    response = await post(client, data=data)
    assert response.status_code == 400, response.content
    assert error in response.json()["error"]
    assert await Run.objects.acount() == 0


async def test_the_last_message_may_be_sent_alone(client: AsyncClient) -> None:
    message = {"parts": [{"type": "text", "text": "a\ud800\0"}, {"type": "file", "url": "data:"}, {"type": "text"}]}
    assert (await post(client, data=json.dumps({"id": "ann/1", "message": message}).encode())).status_code == 200
    assert (await only_run()).input == {"prompt": "a\ufffd\ufffd"}


async def test_a_body_that_is_too_large(client: AsyncClient) -> None:
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=1000):
        response = await post(client, data=body(text="x" * 1000))
        assert response.status_code == 413
        assert "1000 bytes" in response.json()["error"]
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=None):
        assert (await post(client, data=body(text="x" * 1000))).status_code == 200


async def test_other_methods(client: AsyncClient) -> None:
    for path_, allowed in (("chat", "POST"), ("chat/ann/1/stream", "GET"), ("chat/ann/1/stop", "POST"), ("x", "GET")):
        response = await client.put(f"/runs/{path_}")
        assert (response.status_code, response.headers["allow"]) == (405, allowed)


async def test_a_start_that_is_forbidden(client: AsyncClient) -> None:
    assert (await post(client, data=body(text="forbid"))).status_code == 404


async def test_mistakes_of_the_project(client: AsyncClient, settings: Any) -> None:
    with pytest.raises(TypeError, match="must return a run about its subject"):
        await post(client, data=body(text="other"))
    assert await Run.objects.acount() == 0
    for name, error in (
        ("RunChats", "must define subject"),
        ("missing", "cannot be imported"),
        ("urlpatterns", "not a subclass"),
    ):
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "RUN_CHATS": f"{__name__}.{name}"}
        with pytest.raises(Exception, match=error):
            await post(client)
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}
    with pytest.raises(Exception, match="RUN_CHATS'] is not set"):
        await post(client)


async def test_a_run_whose_task_cannot_be_enqueued_is_stopped(client: AsyncClient, monkeypatch: Any) -> None:
    from django.db import transaction

    def start(self: Chats, user: Any, subject: models.Model, message: ChatMessage) -> Run:
        def enqueue() -> None:
            raise ConnectionError("no broker")

        transaction.on_commit(enqueue)
        return Run.objects.start(owner=user, subject=subject)

    monkeypatch.setattr(Chats, "start", start)
    with pytest.raises(ConnectionError):
        await post(client)
    assert (await only_run()).status == Status.STOPPED


async def test_two_requests_at_the_same_time_start_one_run(client: AsyncClient) -> None:
    responses = await asyncio.gather(*(post(client) for _ in range(5)))
    assert sorted(response.status_code for response in responses) == [200, 409, 409, 409, 409]


# -- authentication ---------------------------------------------------------------------------------------------------


async def test_csrf_tokens_protect_sessions(owner: User) -> None:
    client = AsyncClient(enforce_csrf_checks=True)
    await client.aforce_login(owner)
    for path_ in ("/runs/chat", "/runs/chat/ann/1/stop", f"/runs/{uuid.uuid4()}/stop"):
        response = await post(client, path_)
        assert response.status_code == 403
        assert "X-Csrftoken" in response.json()["error"]
    assert await Run.objects.acount() == 0
    token = "a" * 32
    client.cookies["csrftoken"] = token
    assert (await post(client, headers={"X-CSRFToken": "b" * 32})).status_code == 403
    assert (await post(client, headers={"X-CSRFToken": token})).status_code == 200
    assert (await post(client, headers={"X-CSRFToken": token, "Origin": "https://evil.com"})).status_code == 403


async def test_tokens(owner: User, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_SECRET": "s" * 32}
    client = AsyncClient(enforce_csrf_checks=True)
    headers = {"X-JID": cable_token(owner)}
    reader = Reader(await post(client, headers=headers))
    run = await only_run()
    async with written(run) as out:
        out.write("a")
        await reader.read(until="a")
    await reader.read()
    assert (await get(client, f"/runs/{run.pk}", headers=headers)).status_code == 200
    response = await get(client, f"/runs/{run.pk}", headers={"X-JID": "wrong"})
    assert (response.status_code, response.json()["reason"]) == (401, "unauthorized")
    # A session does not replace a token that is not valid.
    await client.aforce_login(owner)
    assert (await get(client, f"/runs/{run.pk}", headers={"X-JID": "wrong"})).status_code == 401
    assert (await get(client, f"/runs/{run.pk}")).status_code == 200
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_REQUIRED": True}
    assert (await get(client, f"/runs/{run.pk}")).status_code == 401


async def test_the_middlewares_of_django(client: AsyncClient, settings: Any, monkeypatch: Any) -> None:
    settings.MIDDLEWARE = [
        "django.middleware.gzip.GZipMiddleware",
        *settings.MIDDLEWARE,
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    reader = Reader(await post(client, headers={"Accept-Encoding": "gzip"}))
    async with written(await only_run()) as out:
        out.write("a")
        await reader.read(until="a")
    await reader.read()
    assert (await get(AsyncClient(), f"/runs/{uuid.uuid4()}")).status_code == 404


# -- interruptions ----------------------------------------------------------------------------------------------------


async def test_a_logout_ends_the_stream(client: AsyncClient, owner: User) -> None:
    reader = Reader(await post(client))
    async with written(await only_run()) as out:
        out.write("a")
        await reader.read(until="a")
        await sync_to_async(disconnect)(user=owner, reconnect=False)
        await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": reading.LOGGED_OUT}
    await is_left()


async def test_a_drain_ends_the_stream(client: AsyncClient) -> None:
    reader = Reader(await post(client))
    run = await only_run()
    async with written(run) as out:
        out.write("a")
        await reader.read(until="a")
        await get_hub().drain(0)
        await reader.read()
        late = Reader(await get(client, "/runs/chat/ann/1/stream"))
        await late.read()
    for each in (reader, late):
        assert each.chunks[-1] == {"type": "error", "errorText": reading.RESTARTING}
    await is_left()


async def test_a_run_that_is_deleted_ends_the_stream(client: AsyncClient) -> None:
    reader = Reader(await post(client))
    await Run.objects.all().adelete()
    await reader.read()
    assert reader.chunks[-1] == {"type": "error", "errorText": reading.GONE}


async def test_a_silent_stream_has_comments(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "SILENCE", 0.01)
    reader = Reader(await post(client))
    async with written(await only_run()) as out:
        reading_ = asyncio.create_task(reader.read(until="a"))
        while not reader.pings:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        out.write("a")
        await reading_
    await reader.read()


async def test_a_slow_reader_loses_nothing(client: AsyncClient, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "RUN_BROADCAST_INTERVAL": 0}
    reader = Reader(await post(client))
    async with written(await only_run()) as out:
        out.write("a")
        await reader.read(until="a")
        for _ in range(400):
            out.write("b")
            await asyncio.sleep(0.001)
    await reader.read()
    assert reader.text == "a" + 400 * "b"


async def test_a_response_that_is_not_read_opens_nothing(client: AsyncClient) -> None:
    response = await post(client)
    response.close()
    await is_left()


def test_wsgi_can_stop_but_not_stream(owner: User) -> None:
    client = Client()
    client.force_login(owner)
    response = client.post("/runs/chat", body(), content_type="application/json")
    assert response.status_code == 501
    assert "ASGI" in response.json()["error"]
    assert client.get("/runs/chat/ann/1/stream").status_code == 501
    run = Run.objects.start(owner=owner, subject=Group.objects.get())
    assert client.get(f"/runs/{run.pk}").json()["status"] == "queued"
    assert client.post("/runs/chat/ann/1/stop").status_code == 204
    assert client.get(f"/runs/{run.pk}").json()["status"] == "stopped"


def test_a_user_without_middlewares(settings: Any) -> None:
    settings.MIDDLEWARE = []
    assert Client().get(f"/runs/{uuid.uuid4()}").status_code == 404
