"""The HTTP endpoint of durable streams: what the conformance suite does not test."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.test import AsyncClient, Client
from django.utils import timezone

from reliable_cable import broadcast
from reliable_cable.auth.tokens import cable_token
from reliable_cable.consumer import get_hub
from reliable_cable.runs.access import RunPermissions
from reliable_cable.runs.durable import appending, forking, reading
from reliable_cable.runs.durable_models import DurableStream
from reliable_cable.runs.http import durable_reading, durable_sources
from reliable_cable.runs.models import Run
from reliable_cable.runs.writing import awriting
from reliable_cable.stores.engine import get_engine
from tests.unit.runs import chat_client, durable_rules
from tests.unit.runs.chat_client import is_left

pytestmark = [pytest.mark.django_db(transaction=True)]

TEXT: dict[str, Any] = {"content_type": "text/plain"}
JSON: dict[str, Any] = {"content_type": "application/json"}
POLICY = {"durable": True, "history_size": 100, "history_ttl": 3600}


@pytest.fixture(autouse=True)
def rules(settings: Any) -> None:
    settings.RELIABLE_CABLE = {
        "RUN_DURABLE_STREAMS": f"{durable_rules.__name__}.Rules",
        "STREAMS": {"durable:*": POLICY},
    }
    settings.ROOT_URLCONF = chat_client.__name__


def change(settings: Any, **values: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, **values}


@pytest.fixture
async def browser() -> AsyncClient:
    return await log_in("ann")


async def log_in(name: str) -> AsyncClient:
    browser = AsyncClient()
    await browser.aforce_login(await User.objects.acreate(username=name))
    return browser


def path(name: str = "ann/1", offset: str = "", live: str = "") -> str:
    query = "&".join(f"{key}={value}" for key, value in (("offset", offset), ("live", live)) if value)
    return f"/runs/durable/{name}?{query}"


async def create(browser: AsyncClient, name: str = "ann/1", body: str = "a", **options: Any) -> Any:
    return await browser.put(path(name), body, **{**TEXT, **options})


async def append(browser: AsyncClient, name: str = "ann/1", body: str = "b", **options: Any) -> Any:
    return await browser.post(path(name), body, **{**TEXT, **options})


async def row() -> DurableStream:
    return await DurableStream.objects.aget()


async def in_store(call: str, **values: Any) -> Any:
    stream = (await row()).stream
    return await sync_to_async(getattr(get_engine().streams, call))(stream, **values)


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
    change(settings, RUN_DURABLE_STREAMS=f"{durable_rules.__name__}.Guests")
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
    # It could be that the store has not numbered the entries yet.
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


# -- the protocol, in short ------------------------------------------------------------------------------------------


async def test_expiry(browser: AsyncClient) -> None:
    await create(browser, headers={"Stream-TTL": "100"})
    assert (await browser.head(path())).headers["Stream-TTL"] == "100"
    await DurableStream.objects.aupdate(expires_at=timezone.now() + timedelta(seconds=50))
    assert (await browser.get(path())).status_code == 200
    until = (await row()).expires_at
    assert until is not None
    assert until > timezone.now() + timedelta(seconds=60)
    await DurableStream.objects.aupdate(expires_at=timezone.now())
    for response in (await browser.get(path()), await append(browser), await browser.delete(path())):
        assert response.status_code == 404
    assert (await create(browser, headers={"Stream-Expires-At": "2099-01-01T00:00:00+01:00"})).status_code == 201
    assert (await browser.head(path())).headers["Stream-Expires-At"] == "2098-12-31T23:00:00Z"
    both = {"Stream-TTL": "1", "Stream-Expires-At": "2099-01-01T00:00:00Z"}
    assert (await create(browser, headers=both)).status_code == 400


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"content_type": "text/html"}, "content type"),
        ({"headers": {"Stream-TTL": "1"}}, "Stream-TTL"),
        ({"headers": {"Stream-Closed": "true"}}, "Stream-Closed"),
        ({"headers": {"Stream-Forked-From": "ann/1"}}, "Stream-Forked-From"),
    ],
)
async def test_streams_are_not_created_twice(browser: AsyncClient, options: dict[str, Any], differs: str) -> None:
    assert (await create(browser)).status_code == 201
    assert (await create(browser)).status_code == 200
    response = await create(browser, **options)
    assert response.status_code == 409
    assert differs in response.json()["error"]
    assert (await browser.get(path())).content == b"a"


async def test_two_requests_create_one_stream(browser: AsyncClient) -> None:
    responses = await asyncio.gather(*(create(browser) for _ in range(4)))
    assert sorted(response.status_code for response in responses) == [200, 200, 200, 201]
    assert (await browser.get(path())).content == b"a"


async def test_the_browser_need_not_load_the_same_data_again(browser: AsyncClient) -> None:
    await create(browser)
    tag = (await browser.get(path())).headers["ETag"]
    assert (await browser.get(path(), headers={"If-None-Match": f'"x", {tag}'})).status_code == 304
    await append(browser, body="", headers={"Stream-Closed": "true"})
    assert (await browser.get(path(), headers={"If-None-Match": tag})).status_code == 200


async def test_producers(browser: AsyncClient) -> None:
    await create(browser, body="[]", **JSON)

    async def produce(epoch: int, sequence: int, **options: Any) -> tuple[int, dict[str, str]]:
        headers = {"Producer-Id": "p", "Producer-Epoch": str(epoch), "Producer-Seq": str(sequence)}
        headers |= options.pop("headers", {})
        response = await append(browser, **{"body": f"[{sequence}]", **JSON, **options}, headers=headers)
        return response.status_code, {
            name: value for name, value in response.headers.items() if name.startswith(("Producer", "Stream-Cl"))
        }

    assert await produce(0, 0) == (200, {"Producer-Epoch": "0", "Producer-Seq": "0"})
    assert await produce(0, 0) == (204, {"Producer-Epoch": "0", "Producer-Seq": "0"})
    assert await produce(0, 2) == (409, {"Producer-Expected-Seq": "1", "Producer-Received-Seq": "2"})
    assert await produce(2, 1) == (400, {})
    assert (await produce(1, 0))[0] == 200
    assert await produce(0, 1) == (403, {"Producer-Epoch": "1"})
    assert (await produce(1, 1, body="[]"))[0] == 400
    assert (await produce(1, 1, body="[1"))[0] == 400
    assert (await produce(1, 1, body=""))[0] == 400
    assert (await produce(1, 1, headers={"Producer-Seq": "x"}))[0] == 400
    assert (await produce(1, 1, headers={"Producer-Id": ""}))[0] == 400
    assert (await append(browser, body="1", **JSON, headers={"Producer-Id": "p"})).status_code == 400
    assert (await append(browser, body="1", headers={"Content-Type": ""})).status_code == 400
    closed = (200, {"Producer-Epoch": "1", "Producer-Seq": "1", "Stream-Closed": "true"})
    assert await produce(1, 1, headers={"Stream-Closed": "true"}) == closed
    assert (await produce(1, 1, headers={"Stream-Closed": "true"}))[0] == 204
    assert await produce(1, 2) == (409, {"Stream-Closed": "true"})
    assert (await browser.get(path())).json() == [0, 0, 1]


async def test_forks(browser: AsyncClient) -> None:
    first = (await create(browser, body="[1, 2, 3]", **JSON)).headers["Stream-Next-Offset"]
    await append(browser, body="[4, 5]", **JSON)

    async def fork(name: str, **headers: str) -> int:
        values = {f"Stream-Fork{key}": value for key, value in headers.items()}
        response = await browser.put(path(name), headers={"Stream-Forked-From": "ann/1", **values})
        return response.status_code

    assert await fork("ann/a", **{"-Offset": first, "-Sub-Offset": "1"}) == 201
    assert (await browser.get(path("ann/a"))).json() == [1, 2, 3, 4]
    for wrong in (
        {"-Offset": "x"},
        {"-Offset": f"{first[:-1]}9"},
        {"-Sub-Offset": "1"},
        {"-Sub-Offset": "01"},
        {"-Offset": first, "-Sub-Offset": "3"},
    ):
        assert await fork("ann/b", **wrong) == 400
    other = {"Stream-Forked-From": "ann/1", "Content-Type": "text/plain"}
    assert (await browser.put(path("ann/b"), headers=other)).status_code == 409
    assert (await browser.delete(path())).status_code == 204
    for response in (await browser.get(path()), await append(browser), await browser.delete(path())):
        assert response.status_code == 410
    assert (await create(browser)).status_code == 409
    assert await fork("ann/b") == 409
    assert (await browser.get(path("ann/a"))).json() == [1, 2, 3, 4]
    assert (await browser.delete(path("ann/a"))).status_code == 204
    assert (await browser.get(path())).status_code == 404
    assert not await DurableStream.objects.aexists()


async def test_a_source_that_has_expired_and_its_fork(browser: AsyncClient) -> None:
    await create(browser, headers={"Stream-Expires-At": "2099-01-01T00:00:00Z"})
    await create(browser, "ann/fork", "", headers={"Stream-Forked-From": "ann/1"})
    assert "Stream-Expires-At" in (await browser.head(path("ann/fork"))).headers
    await DurableStream.objects.filter(name="ann/1").aupdate(expires_at=timezone.now())
    assert (await browser.get(path())).status_code == 404
    assert (await create(browser)).status_code == 409
    assert (await browser.get(path())).status_code == 410


# -- live -------------------------------------------------------------------------------------------------------------


class Events:
    """Reads a response with `live=sse`."""

    def __init__(self, response: Any) -> None:
        assert response.status_code == 200, response.content
        self._response = response
        self._parts = aiter(response)

    async def next(self) -> list[str]:
        async with asyncio.timeout(20):
            part: bytes = await anext(self._parts)
        return part.decode().removesuffix("\n\n").split("\n\n")

    async def ended(self) -> bool:
        async with asyncio.timeout(20):
            return await anext(self._parts, None) is None

    async def close(self) -> None:
        await self._parts.aclose()
        await sync_to_async(self._response.close)()


async def test_a_live_reader_gets_what_is_appended_and_the_end(browser: AsyncClient) -> None:
    await create(browser)
    events = Events(await browser.get(path(offset="-1", live="sse")))
    data, control = await events.next()
    assert data == "event: data\ndata:a"
    assert json.loads(control.partition("data:")[2])["upToDate"] is True
    reading = asyncio.create_task(events.next())
    await append(browser)
    assert (await reading)[0] == "event: data\ndata:b"
    await append(browser, body="", headers={"Stream-Closed": "true"})
    assert '"streamClosed":true' in (await events.next())[0]
    assert await events.ended()
    await is_left()


async def test_a_live_reader_that_leaves_leaves_nothing_behind(browser: AsyncClient) -> None:
    await create(browser)
    events = Events(await browser.get(path(offset="-1", live="sse")))
    await events.next()
    reading = asyncio.create_task(events.next())
    async with asyncio.timeout(20):
        while not get_hub().connections.all():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait([reading])
    await events.close()
    await is_left()


@pytest.mark.parametrize("live", ["sse", "long-poll"])
async def test_live_readers_of_a_stream_that_is_deleted(browser: AsyncClient, live: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(durable_rules.Rules, "long_poll_time", 20)
    await create(browser)
    response = asyncio.create_task(browser.get(path(offset="now", live=live)))
    if live == "sse":
        events = Events(await response)
        await events.next()
        reading = asyncio.create_task(events.ended())
    async with asyncio.timeout(20):
        while not get_hub().connections.all():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await browser.delete(path())
    if live == "sse":
        assert await reading
    else:
        assert (await response).status_code in (204, 404)
    await is_left()


async def test_a_response_with_events_ends_after_a_while(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_rules.Rules, "sse_time", 0.05)
    await create(browser)
    events = Events(await browser.get(path(offset="-1", live="sse")))
    await events.next()
    while not await events.ended():
        pass
    await is_left()


async def test_a_live_reader_gets_more_than_one_chunk(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_ENTRIES", 2)
    await create(browser)
    for number in range(4):
        await append(browser, body=str(number))
    response = await browser.get(path())
    assert response.content == b"a0"
    assert "Stream-Up-To-Date" not in response.headers
    events = Events(await browser.get(path(offset="-1", live="sse")))
    assert [(await events.next())[0] for _ in range(3)] == [f"event: data\ndata:{text}" for text in ("a0", "12", "3")]
    await events.close()
    await is_left()


async def test_a_long_poll_gets_what_is_appended(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_rules.Rules, "long_poll_time", 20)
    await create(browser)
    assert (await browser.get(path(offset="-1", live="long-poll"))).content == b"a"
    poll = asyncio.create_task(browser.get(path(offset="now", live="long-poll")))
    async with asyncio.timeout(20):
        while not get_hub().connections.all():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await append(browser, body="c", headers={"Stream-Closed": "true"})
    response = await poll
    assert response.content == b"c"
    assert response.headers["Stream-Closed"] == "true"
    assert "Stream-Cursor" not in response.headers
    response = await browser.get(path(offset="now", live="long-poll"))
    assert (response.status_code, response.headers["Stream-Closed"]) == (204, "true")
    await is_left()


async def test_silence(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_reading, "SILENCE", 0.02)
    await create(browser, content_type="image/png")
    response = await browser.get(path(offset="now", live="sse"))
    assert response.headers["Stream-SSE-Data-Encoding"] == "base64"
    events = Events(response)
    assert len(await events.next()) == 1
    assert await events.next() == [": ping"]
    await events.close()
    await is_left()


async def test_too_many_live_readers(browser: AsyncClient, settings: Any) -> None:
    change(settings, RATE_LIMITS={"connect": "1/h"})
    await create(browser)
    assert (await browser.get(path(offset="now", live="long-poll"))).status_code == 204
    response = await browser.get(path(offset="now", live="long-poll"))
    assert response.status_code == 503
    events = Events(await browser.get(path(offset="now", live="sse")))
    await events.next()
    assert await events.ended()


async def test_a_long_poll_for_data_that_are_trimmed_meanwhile(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable_rules.Rules, "long_poll_time", 20)
    await create(browser)

    async def trimmed(*args: Any, **kwargs: Any) -> Any:
        raise reading.Trimmed(3)

    monkeypatch.setattr(durable_sources.StreamSource, "read", trimmed)
    response = await browser.get(path(offset="now", live="long-poll"))
    assert response.status_code == 410
    assert response.json()["earliest"].endswith("3")


async def test_cursors_grow(browser: AsyncClient) -> None:
    await create(browser)
    response = await browser.get(path(offset="now", live="long-poll"))
    assert response.status_code == 204
    cursor = response.headers["Stream-Cursor"]
    response = await browser.get(path(offset="now", live="long-poll") + f"&cursor={cursor}")
    assert int(response.headers["Stream-Cursor"]) > int(cursor)
    assert (await browser.get(path(offset="-1", live="both"))).status_code == 400


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
