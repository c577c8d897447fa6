"""Durable streams: the protocol in short, and live readers."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext
from django.test import AsyncClient
from django.utils import timezone

from reliable_cable.consumer import get_hub
from reliable_cable.runs.durable import reading
from reliable_cable.runs.durable.framing import Piece
from reliable_cable.runs.durable_models import DurableStream
from reliable_cable.runs.http import durable_reading, durable_sources
from tests.unit.runs import chat_client, durable_client
from tests.unit.runs.chat_client import is_left
from tests.unit.runs.durable_client import (
    JSON,
    Events,
    append,
    change,
    create,
    path,
    row,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("durable_streams")]


# -- the protocol, in short -------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(durable_client.Rules, "long_poll_time", 20)
    await create(browser)
    response = asyncio.create_task(browser.get(path(offset="now", live=live)))
    if live == "sse":
        events = Events(await response)
        await events.next()
        reading = asyncio.create_task(events.ended())
    async with asyncio.timeout(20):
        while not any(each.subscriptions for each in get_hub().connections.all()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await browser.delete(path())
    if live == "sse":
        assert await reading
    else:
        assert (await response).status_code in (204, 404)
    await is_left()


async def test_a_response_with_events_ends_after_a_while(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_client.Rules, "sse_time", 0.05)
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


@pytest.mark.parametrize(("limit", "value"), [("MAX_CATCH_UP", 1), ("sse_time", 0.0)])
async def test_a_reader_that_is_far_behind_reads_on_with_another_request(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(reading, "MAX_ENTRIES", 2)
    monkeypatch.setattr(durable_reading if limit == "MAX_CATCH_UP" else durable_client.Rules, limit, value)
    await create(browser)
    for number in range(3):
        await append(browser, body=str(number))
    offset = "-1"
    for text in ("a0", "12"):
        events = Events(await browser.get(path(offset=offset, live="sse")))
        data, control = await events.next()
        assert data == f"event: data\ndata:{text}"
        offset = json.loads(control.partition("data:")[2])["streamNextOffset"]
        if text == "a0":
            assert await events.ended()
        await events.close()
    await is_left()


@pytest.mark.parametrize(("limit", "value"), [("MAX_CATCH_UP", 1), ("sse_time", 0.3)])
async def test_a_live_reader_that_falls_behind_reads_on_with_another_request(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(durable_reading if limit == "MAX_CATCH_UP" else durable_client.Rules, limit, value)
    await create(browser)

    async def read(self: Any, after: int) -> reading.Chunk:
        """Return a chunk of a stream that grows faster than the client reads."""
        await asyncio.sleep(0.01)
        return reading.Chunk([Piece(after + 1, b"x")], after + 1, False, False)

    events = Events(await browser.get(path(offset="now", live="sse")))
    assert '"upToDate":true' in (await events.next())[0]
    monkeypatch.setattr(durable_sources.StreamSource, "read", read)
    async with asyncio.timeout(20):
        if limit == "MAX_CATCH_UP":
            await events.next()
            assert await events.ended()
        else:
            while not await events.ended():
                pass
    await is_left()


async def test_a_long_poll_gets_what_is_appended(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_client.Rules, "long_poll_time", 20)
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


async def test_a_long_poll_below_a_sync_middleware(browser: AsyncClient, settings: Any) -> None:
    """The middleware blocks the thread of the request until the view returns."""
    settings.MIDDLEWARE = [f"{chat_client.__name__}.sync_middleware", *settings.MIDDLEWARE]
    await create(browser)
    async with asyncio.timeout(20), ThreadSensitiveContext():  # Django's ASGI handler enters this context, too
        response = await browser.get(path(offset="now", live="long-poll"))
    assert response.status_code == 204
    await is_left()


async def test_other_readers_live_longer_than_the_thread_of_a_request(
    browser: AsyncClient, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The first reader starts tasks that all readers share. Without handler threads, they use the request's thread."""
    settings.MIDDLEWARE = [f"{chat_client.__name__}.sync_middleware", *settings.MIDDLEWARE]
    change(settings, HANDLER_THREADS=0)
    await create(browser)
    async with asyncio.timeout(20), ThreadSensitiveContext():
        response = await browser.get(path(offset="now", live="long-poll"))
    assert response.status_code == 204
    events = Events(await browser.get(path(offset="now", live="sse")))
    await events.next()
    for text in ("first", "second"):
        receiving = asyncio.create_task(events.next())
        await append(browser, body=text)
        assert text in "".join(await receiving)
    await events.close()
    await is_left()
    assert [record.getMessage() for record in caplog.records if record.name == "reliable_cable"] == []


class _Replica:
    """A database router that reads the rows of streams from a replica, which does not exist."""

    def db_for_read(self, model: object, **hints: object) -> str | None:
        return "replica" if model is DurableStream else None


async def test_live_readers_use_no_replica(browser: AsyncClient, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [f"{__name__}._Replica"]
    await create(browser)
    assert (await browser.get(path(offset="now", live="long-poll"))).status_code == 204
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


async def test_too_many_live_readers(browser: AsyncClient, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    change(settings, RATE_LIMITS={"connect": "1/h"})
    await create(browser)
    assert (await browser.get(path(offset="now", live="long-poll"))).status_code == 204
    # The refusal must arrive before the long poll ends.
    monkeypatch.setattr(durable_client.Rules, "long_poll_time", 20)
    response = await browser.get(path(offset="now", live="long-poll"))
    assert (response.status_code, response.headers["Retry-After"]) == (429, "60")
    events = Events(await browser.get(path(offset="now", live="sse")))
    await events.next()
    assert await events.ended()


async def test_a_long_poll_for_data_that_are_trimmed_meanwhile(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable_client.Rules, "long_poll_time", 20)
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
