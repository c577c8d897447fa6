"""Durable streams: permissions, limits, and lost data."""

from __future__ import annotations

import json
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient, Client
from django.utils import timezone

from reliable_cable import broadcast
from reliable_cable.auth.tokens import cable_token
from reliable_cable.runs.durable import appending, forking, reading
from reliable_cable.runs.durable.access import durable_streams
from reliable_cable.runs.durable_models import DurableStream
from tests.unit.runs import chat_client, durable_client
from tests.unit.runs.durable_client import (
    JSON,
    POLICY,
    TEXT,
    Events,
    append,
    change,
    create,
    in_store,
    log_in,
    path,
    row,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("durable_streams")]


# -- who may do what --------------------------------------------------------------------------------------------------


async def test_nobody_may_do_anything_without_the_setting(browser: AsyncClient, settings: Any) -> None:
    assert (await create(browser, "ann/open")).status_code == 201
    change(settings, RUN_DURABLE_STREAMS=None)
    for response in (
        await create(browser, "ann/2"),
        await create(browser, "ann/open"),
        await append(browser, "ann/open"),
        await browser.get(path("ann/open")),
        await browser.get(path("ann/open", "-1", "sse")),
        await browser.head(path("ann/open")),
        await browser.delete(path("ann/open")),
    ):
        assert response.status_code == 404


@pytest.mark.parametrize("path", ["nowhere.Streams", "django.test.Client", "django.test.override_settings"])
def test_the_setting_must_name_a_class_of_rules(settings: Any, path: str) -> None:
    change(settings, RUN_DURABLE_STREAMS=path)
    with pytest.raises(ImproperlyConfigured, match="RUN_DURABLE_STREAMS"):
        durable_streams()


@pytest.mark.parametrize("user", ["bob", None])
async def test_the_streams_of_other_people_do_not_exist(browser: AsyncClient, user: str | None) -> None:
    await create(browser)
    other = AsyncClient() if user is None else await log_in(user)
    for response in (
        await create(other),
        await create(other, "ann/2"),
        await append(other),
        await other.get(path()),
        await other.head(path()),
        await other.delete(path()),
        await create(other, "bob/1", headers={"Stream-Forked-From": "ann/1"}),
    ):
        assert response.status_code == 404
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert (await browser.get(path())).content == b"a"


async def test_who_may_read_need_not_be_allowed_to_write(browser: AsyncClient) -> None:
    await create(browser, "ann/open")
    other = await log_in("bob")
    assert (await other.get(path("ann/open"))).content == b"a"
    assert (await append(other, "ann/open")).status_code == 403
    assert (await other.delete(path("ann/open"))).status_code == 403
    assert (await create(other, "ann/open")).status_code == 404
    assert (
        await create(other, "bob/fork", "", headers={"Stream-Forked-From": "/runs/durable/ann/open"})
    ).status_code == 201


async def test_guests(settings: Any) -> None:
    change(settings, RUN_DURABLE_STREAMS=f"{durable_client.__name__}.Guests")
    assert (await create(AsyncClient(), "open")).status_code == 201
    assert (await AsyncClient().get(path("open"))).content == b"a"
    assert (await append(AsyncClient(), "open")).status_code == 403


async def test_streams_of_another_tenant_do_not_exist(browser: AsyncClient, settings: Any) -> None:
    change(settings, NAMESPACE=f"{chat_client.__name__}.namespace")
    chat_client.tenant.set("one")
    await create(browser)
    assert (await browser.get(path())).content == b"a"
    chat_client.tenant.set("two")
    assert (await browser.get(path())).status_code == 404
    await create(browser, body="other")
    chat_client.tenant.set("one")
    events = Events(await browser.get(path(offset="-1", live="sse")))
    assert (await events.next())[0] == "event: data\ndata:a"
    await events.close()
    assert (await browser.delete(path())).status_code == 204
    chat_client.tenant.set("two")
    assert (await browser.get(path())).content == b"other"
    chat_client.tenant.set("")


async def test_cookies_need_a_csrf_token_and_tokens_need_none(browser: AsyncClient, settings: Any) -> None:
    await create(browser)
    user = await User.objects.aget()
    strict = AsyncClient(enforce_csrf_checks=True)
    await strict.aforce_login(user)
    for method in (strict.put, strict.post, strict.delete):
        response = await method(path(), "csrfmiddlewaretoken=x", content_type="application/x-www-form-urlencoded")
        assert response.status_code == 403
        assert "X-Csrftoken" in response.json()["error"]
    change(settings, JWT_SECRET="secret" * 8)
    token = {"X-JID": await sync_to_async(cable_token)(user)}
    response = await AsyncClient(enforce_csrf_checks=True).post(path(), "b", **TEXT, headers=token)
    assert response.status_code == 204


async def test_pages_of_other_origins(browser: AsyncClient, settings: Any) -> None:
    asked = {"Origin": "https://example.com", "Access-Control-Request-Method": "PUT"}
    assert "Access-Control-Allow-Origin" not in (await browser.options(path(), headers=asked)).headers
    change(settings, CORS_ORIGINS=["https://example.com"])
    response = await browser.options(path(), headers=asked)
    assert response.headers["Access-Control-Allow-Origin"] == "https://example.com"
    assert "PUT" in response.headers["Access-Control-Allow-Methods"]
    response = await create(browser, headers=asked)
    assert "Stream-Next-Offset" in response.headers["Access-Control-Expose-Headers"]
    assert "Origin" in response.headers["Vary"]


async def test_browsers_do_not_show_the_data_as_a_page(browser: AsyncClient) -> None:
    await create(browser, body="<script>", content_type="text/html")
    response = await browser.get(path())
    assert response.headers["Content-Type"] == "text/html"
    assert response.headers["Content-Disposition"] == "attachment"
    assert "sandbox" in response.headers["Content-Security-Policy"]


# -- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 256, "ann/%00", "__ds/x", "ann/__ds/x", "ann/%2E%2E/x"])
async def test_names_that_no_stream_can_have(browser: AsyncClient, name: str) -> None:
    assert (await create(browser, name)).status_code == 404


async def test_the_location_of_a_stream_is_its_url(browser: AsyncClient) -> None:
    for name in ("ann/1", "ann/%3Fa%23b%2525"):
        location = (await create(browser, name)).headers["Location"]
        assert location == f"http://testserver/runs/durable/{name}"
        assert (await browser.get(location)).content == b"a"


async def test_an_owner_can_have_a_number_of_streams(browser: AsyncClient) -> None:
    for number in range(3):
        assert (await create(browser, f"ann/{number}")).status_code == 201
    assert (await create(browser, "ann/x")).status_code == 429
    assert (await create(browser, "ann/0")).status_code == 200
    await DurableStream.objects.filter(name="ann/0").aupdate(expires_at=timezone.now())
    assert (await create(browser, "ann/x")).status_code == 201
    assert not await DurableStream.objects.filter(name="ann/0").aexists()


async def test_bodies_have_a_size(browser: AsyncClient, settings: Any) -> None:
    change(settings, MAX_BROADCAST_SIZE=1024)
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 5000
    body = "é" * 2500
    assert (await create(browser, body=body)).status_code == 201
    assert (await browser.get(path())).content == body.encode()
    assert (await row()).count > 1
    assert (await append(browser, body="x" * 5001)).status_code == 413
    await create(browser, "ann/json", "[]", **JSON)
    assert (await append(browser, "ann/json", json.dumps(["x" * 2000]), **JSON)).status_code == 413
    values = ["x" * 300] * 10
    assert (await append(browser, "ann/json", json.dumps(values), **JSON)).status_code == 204
    assert (await browser.get(path("ann/json"))).json() == values


@pytest.mark.parametrize(
    "headers",
    [
        {"Producer-Id": "x" * 256, "Producer-Epoch": "0", "Producer-Seq": "0"},
        {"Producer-Id": "x", "Producer-Epoch": str(2**53), "Producer-Seq": "0"},
        {"Stream-Seq": "x" * 256},
        {"Content-Type": "x" * 300},
    ],
)
async def test_headers_that_are_not_valid(browser: AsyncClient, headers: dict[str, str]) -> None:
    await create(browser)
    assert (await append(browser, headers=headers)).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Stream-TTL": "9" * 11},
        {"Stream-Expires-At": "2027-02-30T00:00:00Z"},
        {"Stream-Expires-At": "2027-02-03T00:00:00"},
        {"Content-Type": "text/" + "x" * 300},
        {"Stream-Fork-Offset": "1"},
    ],
)
async def test_streams_that_cannot_be_created(browser: AsyncClient, headers: dict[str, str]) -> None:
    assert (await create(browser, headers=headers)).status_code == 400


async def test_producers_are_limited(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "MAX_PRODUCERS", 1)
    await create(browser)
    for name, status in (("p", 200), ("q", 429)):
        headers = {"Producer-Id": name, "Producer-Epoch": "0", "Producer-Seq": "0"}
        assert (await append(browser, headers=headers)).status_code == status


@pytest.mark.parametrize(("limit", "value"), [("MAX_COPIED", 1), ("MAX_COPIED_SIZE", 1)])
async def test_forks_copy_a_limited_amount(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(forking, limit, value)
    await create(browser)
    await append(browser)
    assert (await create(browser, "ann/fork", "", headers={"Stream-Forked-From": "ann/1"})).status_code == 413


@pytest.mark.parametrize("policy", [{**POLICY, "durable": False}, None])
async def test_the_store_must_be_durable(browser: AsyncClient, settings: Any, policy: Any) -> None:
    change(settings, STREAMS={} if policy is None else {"durable:*": policy})
    response = await create(browser)
    assert response.status_code == 501
    assert "'durable'" in response.json()["error"]


def test_wsgi() -> None:
    client = Client()
    client.force_login(User.objects.create(username="ann"))
    assert client.put(path(), "a", **TEXT).status_code == 201
    assert client.get(path()).content == b"a"
    assert client.get(path(offset="-1", live="sse")).status_code == 501
    assert client.post("/runs/durable/ann/1", "b", **TEXT).status_code == 204
    assert client.patch(path()).status_code == 405


@pytest.mark.parametrize("limit", [None, 1000])
def test_a_body_that_a_wsgi_server_has_cut_off(settings: Any, limit: int | None) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = limit
    client = Client()
    client.force_login(User.objects.create(username="ann"))
    client.put(path(), "a", **TEXT)
    cut_off: Any = {"wsgi.input": BytesIO(b"bc"), "CONTENT_LENGTH": "3"}
    response = client.post(path(), "bcd", **TEXT, **cut_off)
    assert response.status_code == 400
    assert "Content-Length" in response.json()["error"]
    assert client.get(path()).content == b"a"


# -- lost data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", ["", "long-poll", "sse"])
async def test_trimmed_data_are_gone(browser: AsyncClient, settings: Any, live: str) -> None:
    change(settings, STREAMS={"durable:*": {**POLICY, "history_size": 2}})
    offsets = [(await create(browser)).headers["Stream-Next-Offset"]]
    for _ in range(3):
        offsets.append((await append(browser)).headers["Stream-Next-Offset"])
    for offset in ("-1", offsets[0]):
        response = await browser.get(path(offset=offset, live=live))
        assert response.status_code == 410
        assert response.json()["earliest"] == offsets[1]
    assert (await browser.get(path(offset=offsets[1]))).content == b"bb"
    assert (await create(browser, "ann/fork", "", headers={"Stream-Forked-From": "ann/1"})).status_code == 410


async def test_a_stream_goes_on_after_the_store_has_lost_data(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (await create(browser)).headers["Stream-Next-Offset"]
    second = (await append(browser)).headers["Stream-Next-Offset"]
    await in_store("forget")
    # The reader cannot tell that the entries are lost, because the store may not have numbered them yet.
    response = await browser.get(path(offset=first))
    assert response.status_code == 200
    assert "Stream-Up-To-Date" not in response.headers
    monkeypatch.setattr(reading, "NUMBERING_TIME", timedelta())
    assert (await browser.get(path(offset=first))).status_code == 410
    third = (await append(browser, body="c")).headers["Stream-Next-Offset"]
    assert first < second < third
    assert (await browser.get(path(offset=first))).status_code == 410
    assert (await browser.get(path(offset=second))).content == b"c"
    assert (await row()).shift == 2
    await append(browser, body="d")
    assert (await browser.get(path(offset=third))).content == b"d"


async def test_offsets_of_a_deleted_stream_are_gone(browser: AsyncClient) -> None:
    offset = (await create(browser)).headers["Stream-Next-Offset"]
    await browser.delete(path())
    await create(browser)
    assert (await browser.get(path(offset=offset))).status_code == 410


async def test_messages_of_others_are_left_out(browser: AsyncClient) -> None:
    await create(browser)
    await sync_to_async(broadcast)((await row()).stream, {"not": "an entry"})
    assert (await browser.get(path())).content == b"a"
