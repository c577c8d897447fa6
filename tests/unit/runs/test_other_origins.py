"""The setting `CORS_ORIGINS` decides which pages of other origins may use the HTTP endpoints of runs."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import AsyncClient, Client

from reliable_cable.auth.tokens import cable_token
from tests.unit.runs.chat_client import Reader, get, only_run, post, written

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chats")]

LISTED, OTHER = "https://app.example.com", "https://other.example.com"
ALLOW = "Access-Control-Allow-Origin"


@pytest.fixture(autouse=True)
def _listed(chats: None, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_SECRET": "s" * 32, "CORS_ORIGINS": [LISTED]}


async def test_a_page_of_a_listed_origin_with_a_token(member: User) -> None:
    browser = AsyncClient()
    headers = {"X-JID": cable_token(member), "Origin": LISTED}
    response = await post(browser, headers=headers)
    assert response.headers[ALLOW] == LISTED
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Origin" in response.headers["Vary"]
    reader = Reader(response)
    run = await only_run()
    async with written(run) as out:
        out.write("a")
        await reader.read(until="a")
    await reader.read()
    for path, status in ((f"/runs/{run.pk}", 200), ("/runs/chat/ann/1/stream", 204), ("/runs/chat/bob/1/stream", 404)):
        response = await get(browser, path, headers=headers)
        assert (response.status_code, response.headers[ALLOW]) == (status, LISTED)


async def test_other_pages_may_not_read(member: User) -> None:
    response = await post(AsyncClient(), headers={"X-JID": cable_token(member), "Origin": OTHER})
    assert ALLOW not in response.headers
    assert "Origin" in response.headers["Vary"]


async def test_browsers_ask_first(settings: Any) -> None:
    browser = AsyncClient()
    asked = {"Origin": LISTED, "Access-Control-Request-Method": "POST"}
    for path in ("/runs/chat", "/runs/chat/1/stream", f"/runs/{uuid.uuid4()}", "/runs/ag-ui/connect"):
        response = await browser.options(path, headers=asked)
        assert (response.status_code, response.headers[ALLOW]) == (204, LISTED)
        assert response.headers["Access-Control-Allow-Methods"] == "GET, POST"
        allowed = response.headers["Access-Control-Allow-Headers"].lower().split(", ")
        assert {"content-type", "x-jid", "x-csrftoken"} <= set(allowed)
    response = await browser.options("/runs/chat", headers={**asked, "Origin": OTHER})
    assert (response.status_code, response.headers.get("Access-Control-Allow-Methods")) == (204, None)
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}
    assert ALLOW not in (await browser.options("/runs/chat", headers=asked)).headers


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_page_of_a_listed_origin_with_cookies(member: User, settings: Any, trusted: bool) -> None:
    """The page may use the login of its visitor only if `CSRF_TRUSTED_ORIGINS` lists its origin, too."""
    settings.CSRF_TRUSTED_ORIGINS = [LISTED] if trusted else []
    settings.ALLOWED_HOSTS = ["testserver"]
    browser = AsyncClient(enforce_csrf_checks=True)
    await browser.aforce_login(member)
    browser.cookies["csrftoken"] = "a" * 32
    headers = {"Origin": LISTED, "X-CSRFToken": "a" * 32}
    status = (await post(browser, "/runs/chat/ann/1/stop", headers=headers)).status_code
    assert status == (204 if trusted else 403)
    response = await get(browser, "/runs/chat/ann/1/stream", headers=headers)
    assert response.status_code == (204 if trusted else 403)
    if not trusted:
        assert response.json()["reason"] == "origin"
        assert response.headers[ALLOW] == LISTED
    assert (await get(browser, "/runs/chat/ann/1/stream")).status_code == 204


def test_wsgi(member: User) -> None:
    headers = {"X-JID": cable_token(member), "Origin": LISTED}
    response = Client().post("/runs/chat/ann/1/stop", headers=headers)
    assert (response.status_code, response.headers[ALLOW]) == (204, LISTED)
