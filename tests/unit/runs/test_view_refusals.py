"""The HTTP endpoints of runs refuse requests of other users, requests without valid tokens, and invalid bodies."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections, models, transaction
from django.test import AsyncClient, override_settings

from reliable_cable.auth.tokens import cable_token
from reliable_cable.runs.chats import ChatMessage
from reliable_cable.runs.http.ag_ui_views import RunInput
from reliable_cable.runs.models import Run, Status
from tests.unit.runs import chat_client
from tests.unit.runs.chat_client import Chats, Reader, begun, body, get, only_run, post, written

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chats")]


@pytest.mark.parametrize("user", ["bob", None])
async def test_the_runs_of_other_people_do_not_exist(browser: AsyncClient, user: str | None) -> None:
    await post(browser)
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


async def test_the_runs_of_another_tenant_do_not_exist(browser: AsyncClient, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "NAMESPACE": f"{chat_client.__name__}.namespace"}
    chat_client.tenant.set("one")
    reader = Reader(await post(browser))
    run = await only_run()
    assert run.namespace == "one"
    async with begun(run, reader):
        second = Reader(await get(browser, "/runs/chat/ann/1/stream"))
        await second.read(until="a")
        chat_client.tenant.set("two")
        assert (await get(browser, "/runs/chat/ann/1/stream")).status_code == 204
        assert (await get(browser, f"/runs/{run.pk}")).status_code == 404
        assert (await post(browser, f"/runs/{run.pk}/stop")).status_code == 404
        chat_client.tenant.set("")
    await reader.read()


@pytest.mark.parametrize("chat", ["ann/2", "%00", "x" * 300, "%ED%A0%80"])
async def test_unknown_chats_and_runs(browser: AsyncClient, chat: str) -> None:
    assert (await get(browser, f"/runs/chat/{chat}/stream")).status_code == 404
    assert (await post(browser, f"/runs/chat/{chat}/stop")).status_code == 404
    assert (await get(browser, f"/runs/{chat.replace('/', '-')}")).status_code == 404
    assert (await get(browser, f"/runs/{uuid.uuid4()}")).status_code == 404


async def test_a_user_who_may_only_read(browser: AsyncClient, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "RUN_PERMISSIONS": f"{chat_client.__name__}.Readable"}
    await post(browser)
    assert (await post(browser, "/runs/chat/ann/1/stop")).status_code == 404
    assert (await get(browser, f"/runs/{(await only_run()).pk}")).status_code == 200


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "must be JSON"),
        (b"{", "must be JSON"),
        (b"\xff", "must be JSON"),
        (b'{"id": NaN}', "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b'{"id": ' + b"[" * 900 + b"]" * 900 + b"}", "The "),
        ([], "must be a JSON object"),
        ({}, "'id'"),
        (body(chat=7), "'id'"),  # type: ignore[arg-type]
        (body(chat="x" * 256), "'id'"),
        (body(messages=None), "'messages'"),
        (body(messages=[]), "'messages'"),
        (body(messages=["a"]), "must be an object"),
        (body(message={"parts": [7]}), "'parts'"),
        (body(message={"role": "user"}), "'parts'"),
        (body(message={"role": "assistant", "parts": []}), "tools that the page runs are not supported"),
        (body(trigger=7), "'trigger'"),
        (body(messageId={}), "'messageId'"),
        (body(text="refuse"), "Ask something else."),
    ],
)
async def test_bodies_that_are_not_valid(browser: AsyncClient, data: Any, error: str) -> None:
    response = await post(browser, data=data)
    assert response.status_code == 400, response.content
    assert error in response.json()["error"]
    assert await Run.objects.acount() == 0


async def test_the_last_message_may_be_sent_alone(browser: AsyncClient) -> None:
    message = {"parts": [{"type": "text", "text": "a\ud800\0"}, {"type": "file", "url": "data:"}, {"type": "text"}]}
    assert (await post(browser, data=json.dumps({"id": "ann/1", "message": message}).encode())).status_code == 200
    assert (await only_run()).input == {"prompt": "a\ufffd\ufffd"}


async def test_a_body_that_is_too_large(browser: AsyncClient) -> None:
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=1000):
        response = await post(browser, data=body(text="x" * 1000))
        assert response.status_code == 413
        assert "1000 bytes" in response.json()["error"]
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=None):
        assert (await post(browser, data=body(text="x" * 1000))).status_code == 200


async def test_other_methods(browser: AsyncClient) -> None:
    for path_, allowed in (("chat", "POST"), ("chat/ann/1/stream", "GET"), ("chat/ann/1/stop", "POST"), ("x", "GET")):
        response = await browser.put(f"/runs/{path_}")
        assert (response.status_code, response.headers["allow"]) == (405, f"{allowed}, OPTIONS")


async def test_a_start_that_is_forbidden(browser: AsyncClient) -> None:
    for text in ("forbid", "hide"):
        response = await post(browser, data=body(text=text))
        assert (response.status_code, response.json()["error"]) == (404, "There is no such chat.")


async def test_a_cache_of_the_whole_site_stores_no_runs(browser: AsyncClient, settings: Any) -> None:
    """Django's cache middleware ignores the header with the token, so it could give a cached run to another user."""
    settings.MIDDLEWARE = [
        "django.middleware.cache.UpdateCacheMiddleware",
        *settings.MIDDLEWARE,
        "django.middleware.cache.FetchFromCacheMiddleware",
    ]
    await post(browser)
    run = await only_run()
    assert (await get(browser, f"/runs/{run.pk}")).json()["status"] == "queued"
    await post(browser, f"/runs/{run.pk}/stop")
    assert (await get(browser, f"/runs/{run.pk}")).json()["status"] == "stopped"


@pytest.mark.parametrize("type_", ["multipart/form-data", "application/x-www-form-urlencoded"])
async def test_bodies_that_are_called_forms(browser: AsyncClient, type_: str) -> None:
    """Django would parse a body of these types as a form, to look for the CSRF token in it."""
    browser.handler.enforce_csrf_checks = True
    browser.cookies["csrftoken"] = "a" * 32
    options: dict[str, Any] = {"content_type": type_, "headers": {"X-CSRFToken": "a" * 32}}
    with override_settings(DATA_UPLOAD_MAX_NUMBER_FIELDS=1, DATA_UPLOAD_MAX_MEMORY_SIZE=100):
        response = await browser.post("/runs/chat", b"a=1&b=2", **options)
        assert (response.status_code, response.json()["error"]) == (400, "The body must be JSON.")
        assert (await browser.post("/runs/chat", 200 * b"a", **options)).status_code == 413
        assert (await browser.post("/runs/chat/ann/1/stop", b"a=1&b=2", **options)).status_code == 204


async def test_the_content_of_a_message_is_not_in_its_repr() -> None:
    message = ChatMessage("m1", "user", "secret", [{"text": "secret"}], body={"a": "secret"})
    assert "secret" not in repr(message)
    assert "secret" not in repr(RunInput("t", [{"content": "secret"}], {"a": "secret"}))


async def test_mistakes_of_the_project(browser: AsyncClient, settings: Any) -> None:
    with pytest.raises(TypeError, match="must return a run about its subject"):
        await post(browser, data=body(text="other"))
    with pytest.raises(TypeError, match="must return a run that the user may read"):
        await post(browser, data=body(text="nobody"))
    assert await Run.objects.acount() == 0
    for name, error in (
        ("RunChats", "must define subject"),
        ("missing", "cannot be imported"),
        ("urlpatterns", "not a subclass"),
    ):
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "RUN_CHATS": f"{chat_client.__name__}.{name}"}
        with pytest.raises(Exception, match=error):
            await post(browser)
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}
    with pytest.raises(Exception, match="RUN_CHATS'] is not set"):
        await post(browser)


async def test_a_run_whose_task_cannot_be_enqueued_is_stopped(browser: AsyncClient, monkeypatch: Any) -> None:
    def start(self: Chats, user: Any, subject: models.Model, message: ChatMessage) -> Run:
        def enqueue() -> None:
            raise ConnectionError("no broker")

        transaction.on_commit(enqueue)
        return Run.objects.start(owner=user, subject=subject)

    monkeypatch.setattr(Chats, "start", start)
    with pytest.raises(ConnectionError):
        await post(browser)
    assert (await only_run()).status == Status.STOPPED


async def test_two_requests_at_the_same_time_start_one_run(browser: AsyncClient) -> None:
    responses = await asyncio.gather(*(post(browser) for _ in range(5)))
    assert sorted(response.status_code for response in responses) == [200, 409, 409, 409, 409]


# -- authentication ----------------------------------------------------------------------------------------------------


async def test_csrf_tokens_protect_sessions(member: User) -> None:
    browser = AsyncClient(enforce_csrf_checks=True)
    await browser.aforce_login(member)
    for path_ in ("/runs/chat", "/runs/chat/ann/1/stop", f"/runs/{uuid.uuid4()}/stop"):
        response = await post(browser, path_)
        assert response.status_code == 403
        assert "X-Csrftoken" in response.json()["error"]
    assert await Run.objects.acount() == 0
    token = "a" * 32
    browser.cookies["csrftoken"] = token
    assert (await post(browser, headers={"X-CSRFToken": "b" * 32})).status_code == 403
    assert (await post(browser, headers={"X-CSRFToken": token})).status_code == 200
    assert (await post(browser, headers={"X-CSRFToken": token, "Origin": "https://evil.com"})).status_code == 403


async def test_tokens(member: User, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_SECRET": "s" * 32}
    browser = AsyncClient(enforce_csrf_checks=True)
    headers = {"X-JID": cable_token(member)}
    reader = Reader(await post(browser, headers=headers))
    run = await only_run()
    async with written(run) as out:
        out.write("a")
        await reader.read(until="a")
    await reader.read()
    assert (await get(browser, f"/runs/{run.pk}", headers=headers)).status_code == 200
    response = await get(browser, f"/runs/{run.pk}", headers={"X-JID": "wrong"})
    assert (response.status_code, response.json()["reason"]) == (401, "unauthorized")
    # An invalid token is refused even if the browser is logged in.
    await browser.aforce_login(member)
    assert (await get(browser, f"/runs/{run.pk}", headers={"X-JID": "wrong"})).status_code == 401
    assert (await get(browser, f"/runs/{run.pk}")).status_code == 200
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_REQUIRED": True}
    assert (await get(browser, f"/runs/{run.pk}")).status_code == 401


async def test_the_middlewares_of_django(browser: AsyncClient, settings: Any, monkeypatch: Any) -> None:
    settings.MIDDLEWARE = [
        f"{chat_client.__name__}.sync_middleware",
        "django.middleware.gzip.GZipMiddleware",
        *settings.MIDDLEWARE,
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    reader = Reader(await post(browser, headers={"Accept-Encoding": "gzip"}))
    async with written(await only_run()) as out:
        out.write("a")
        await reader.read(until="a")
    await reader.read()
    assert (await get(AsyncClient(), f"/runs/{uuid.uuid4()}")).status_code == 404
