"""Durable streams: times of expiry, tenants, and concurrent changes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from django.test import AsyncClient
from django.utils import timezone

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, StoreError
from reliable_cable.runs.durable import forking, reading, storage
from reliable_cable.runs.durable.appending import Append
from reliable_cable.runs.durable_models import DurableStream
from reliable_cable.runs.http.durable_requests import _time
from reliable_cable.runs.http.durable_sources import StreamSource
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.streams.durable import DurableStreamStore
from reliable_cable.stores.streams.model import ModelStreamStore
from tests.unit.runs import chat_client, durable_client
from tests.unit.runs.durable_client import POLICY, append, change, create, in_store, path, row

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("durable_streams")]


# -- times of expiry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "time",
    [
        "0001-01-01T00:00:00+14:00",
        "0001-01-01T00:00:00Z",
        "1970-01-01T00:00:00+00:01",
        "9998-12-31T23:59:59-00:01",
        "9999-12-31T23:59:59-14:00",
    ],
)
async def test_times_that_cannot_be_stored(browser: AsyncClient, time: str) -> None:
    assert (await create(browser, headers={"Stream-Expires-At": time})).status_code == 400


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2099-01-01T00:00:00+23:59", datetime(2098, 12, 31, 0, 1, tzinfo=UTC)),
        ("9998-12-31T23:59:59+00:00", datetime(9998, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
async def test_times_are_stored_in_utc(browser: AsyncClient, time: str, expected: datetime) -> None:
    assert (await create(browser, headers={"Stream-Expires-At": time})).status_code == 201
    stored: Any = (await row()).expires_at
    assert stored == expected
    assert (await create(browser, headers={"Stream-Expires-At": time})).status_code == 200


async def test_the_parser_returns_times_in_utc() -> None:
    # PostgreSQL does not accept all UTC offsets that Python accepts.
    assert _time("2099-01-01T00:00:00+23:59").utcoffset() == timedelta()


# -- tenants ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tenants(settings: Any, durable_streams: None) -> Iterator[None]:
    """Let a test set the namespace with `chat_client.tenant`."""
    change(settings, NAMESPACE=f"{chat_client.__name__}.namespace")
    yield
    chat_client.tenant.set("")


@pytest.mark.usefixtures("tenants")
async def test_expired_streams_of_another_tenant(browser: AsyncClient) -> None:
    chat_client.tenant.set("one")
    await create(browser)
    await DurableStream.objects.aupdate(expires_at=timezone.now())
    chat_client.tenant.set("two")
    assert (await create(browser)).status_code == 201
    assert await DurableStream.objects.acount() == 2
    chat_client.tenant.set("one")
    assert (await create(browser, "ann/2")).status_code == 201
    assert await DurableStream.objects.filter(namespace="one").acount() == 1


@pytest.mark.usefixtures("tenants")
async def test_the_maximum_applies_to_each_tenant(browser: AsyncClient) -> None:
    for tenant in ("one", "two"):
        chat_client.tenant.set(tenant)
        for number in range(3):
            assert (await create(browser, f"ann/{number}")).status_code == 201
        assert (await create(browser, "ann/x")).status_code == 429


# -- users who are not logged in --------------------------------------------------------------------------------------


async def test_a_user_who_is_not_logged_in_and_an_existing_name(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable_client.Rules, "may_write", lambda *args: True)
    assert (await create(browser, "ann/open")).status_code == 201
    assert (await create(AsyncClient(), "ann/open")).status_code == 404
    await DurableStream.objects.aupdate(expires_at=timezone.now())
    assert (await create(AsyncClient(), "ann/open")).status_code == 404
    assert await DurableStream.objects.aexists()


# -- requests at the same time ----------------------------------------------------------------------------------------

FORK = {"Stream-Forked-From": "ann/1"}


async def test_a_source_and_its_last_fork_are_deleted_at_the_same_time(browser: AsyncClient) -> None:
    await create(browser)
    await create(browser, "ann/fork", "", headers=FORK)
    fork = await DurableStream.objects.select_related("source").aget(name="ann/fork")
    assert (await browser.delete(path())).status_code == 204
    await sync_to_async(storage.delete)(fork)
    assert not await DurableStream.objects.aexists()


async def test_a_stream_is_forked_while_it_is_deleted(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(browser)
    source = await row()
    calls: list[str] = []

    def forget(stream: str, **options: Any) -> None:
        calls.append(stream)
        if len(calls) == 1:
            DurableStream.objects.create(name="ann/fork", source_id=source.pk)

    monkeypatch.setattr(storage, "forget", forget)
    assert (await browser.delete(path())).status_code == 204
    assert calls == [source.stream] * 2


async def test_a_stream_that_was_renewed_is_not_deleted(browser: AsyncClient) -> None:
    await create(browser, headers={"Stream-TTL": "100"})
    old = await row()
    old.expires_at = timezone.now()
    await sync_to_async(storage.delete)(old, only_expired=True)
    assert (await browser.get(path())).content == b"a"
    await DurableStream.objects.aupdate(expires_at=timezone.now())
    await sync_to_async(storage.delete)(old, only_expired=True)
    assert not await DurableStream.objects.aexists()
    await sync_to_async(storage.delete)(old)


async def test_a_stream_expires_before_an_append(browser: AsyncClient) -> None:
    await create(browser, headers={"Stream-TTL": "100"})
    old = await row()
    await DurableStream.objects.aupdate(expires_at=timezone.now())
    with pytest.raises(storage.NotFound):
        await sync_to_async(storage.append)(old, Append(True, "text/plain"), b"b")


async def test_a_read_does_not_renew_a_stream_that_was_deleted(browser: AsyncClient) -> None:
    await create(browser, headers={"Stream-TTL": "100"})
    old = await row()
    old.expires_at = timezone.now() + timedelta(seconds=1)
    await DurableStream.objects.aupdate(deleted=True, expires_at=None, ttl=None)
    await sync_to_async(storage._renew)(old)
    assert (await row()).expires_at is None


# -- deleted streams --------------------------------------------------------------------------------------------------


async def test_deleted_streams_do_not_count(browser: AsyncClient) -> None:
    await create(browser)
    await create(browser, "ann/fork", "", headers=FORK)
    assert (await browser.delete(path())).status_code == 204
    for number in (2, 3):
        assert (await create(browser, f"ann/{number}")).status_code == 201
    assert (await create(browser, "ann/4")).status_code == 429
    assert await DurableStream.objects.filter(deleted=True).acount() == 1


@pytest.mark.parametrize("name", ["ann/1", "ann/2"])
async def test_deleted_streams_without_forks_disappear(browser: AsyncClient, name: str) -> None:
    await create(browser)
    await DurableStream.objects.aupdate(deleted=True)
    assert (await create(browser, name)).status_code == 201
    assert (await row()).name == name


# -- lost data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["forgotten", "missing"])
async def test_a_reader_can_go_on_after_all_data_were_lost(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    await create(browser)
    end = (await append(browser)).headers["Stream-Next-Offset"]
    if loss == "forgotten":
        await in_store("forget")
    else:
        # The store has never had a stream with this new id.
        await DurableStream.objects.aupdate(id=uuid.uuid4())
    monkeypatch.setattr(reading, "NUMBERING_TIME", timedelta())
    response = await browser.get(path(offset="-1"))
    assert response.status_code == 410
    assert response.json()["earliest"] == end
    assert (await browser.get(path(offset=end))).status_code == 200


CLOSE = {"Stream-Closed": "true"}


async def test_the_end_of_a_stream_hides_no_trimmed_data(browser: AsyncClient, settings: Any) -> None:
    change(settings, STREAMS={"durable:*": {**POLICY, "history_size": 1}})
    first = (await create(browser)).headers["Stream-Next-Offset"]
    second = (await append(browser)).headers["Stream-Next-Offset"]
    assert (await append(browser, body="", headers=CLOSE)).status_code == 204
    response = await browser.get(path(offset=first))
    assert response.status_code == 410
    assert response.json()["earliest"] == second
    response = await browser.get(path(offset=second))
    assert (response.status_code, response.content, response.headers["Stream-Closed"]) == (200, b"", "true")


async def test_a_live_reader_reads_what_is_missing_before_the_end(browser: AsyncClient) -> None:
    await create(browser)
    source = StreamSource(await row())
    frame = {"message": {"n": 2, "end": True}}
    assert source.chunk_of(frame, 1) is None
    assert source.chunk_of(frame, 2) == reading.Chunk([], 2, True, True)
    assert source.chunk_of({"message": {"n": 2, "text": "b"}}, 0) is None
    found = source.chunk_of({"message": {"n": 2, "text": "b"}}, 1)
    assert found is not None
    assert (found.pieces[0].data, found.end, found.closed) == (b"b", 2, False)


# -- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "status"), [("bob/1", 404), ("ann/2", 409), ("ann/4", 429), ("ann/3", 200)])
async def test_data_are_copied_only_for_a_fork_that_may_be_created(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    await create(browser)
    await create(browser, "ann/2")
    await create(browser, "ann/3", "", headers=FORK)

    def copy(*args: Any) -> Any:
        raise AssertionError("The data were copied.")

    monkeypatch.setattr(forking, "_copy", copy)
    assert (await create(browser, name, "", headers=FORK)).status_code == status


async def test_a_fork_has_entries_that_were_not_numbered(browser: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(browser)
    monkeypatch.setattr(ModelStreamStore, "_number_after_commit", lambda *args: None)
    end = (await append(browser)).headers["Stream-Next-Offset"]
    beyond = {**FORK, "Stream-Fork-Offset": end, "Stream-Fork-Sub-Offset": "1"}
    assert (await create(browser, "ann/fork", "", headers=FORK)).status_code == 201
    assert (await create(browser, "ann/other", "", headers=beyond)).status_code == 400
    await sync_to_async(get_engine().streams.number_outbox)()
    assert (await browser.get(path("ann/fork"))).content == b"ab"


@pytest.mark.parametrize("error", [None, BroadcastError("The database is gone.")])
async def test_entries_of_a_source_cannot_be_numbered(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch, error: BroadcastError | None
) -> None:
    await create(browser)

    def number(*args: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(ModelStreamStore, "number_outbox", number)
    await append(browser)
    source = await row()
    with pytest.raises(StoreError):
        await sync_to_async(forking._copy)(source, 2, 0)


def test_the_store_with_redis_numbers_its_outbox_too() -> None:
    store = DurableStreamStore(CableSettings(redis_url="redis://localhost:1"))
    with mock.patch.object(ModelStreamStore, "number_outbox") as number:
        store.number_outbox(["a"])
    number.assert_called_once_with(["a"])
    store.close()


async def test_old_offsets_and_tags_of_a_fork_do_not_apply_to_new_data(browser: AsyncClient) -> None:
    inherited = (await create(browser)).headers["Stream-Next-Offset"]
    old = await create(browser, "ann/fork", "old", headers=FORK)
    tag = (await browser.get(path("ann/fork"))).headers["ETag"]
    assert (await browser.delete(path("ann/fork"))).status_code == 204
    end = (await create(browser, "ann/fork", "new", headers=FORK)).headers["Stream-Next-Offset"]
    assert (await browser.get(path("ann/fork", old.headers["Stream-Next-Offset"]))).status_code == 410
    response = await browser.get(path("ann/fork"), headers={"If-None-Match": tag})
    assert (response.status_code, response.content) == (200, b"anew")
    assert (await browser.get(path("ann/fork", inherited))).content == b"new"
    # This offset follows data that the source got after the fork, so the fork does not have it.
    beyond = (await append(browser)).headers["Stream-Next-Offset"]
    assert (await browser.get(path("ann/fork", beyond))).status_code == 410
    at_first = {"Stream-Forked-From": "ann/fork", "Stream-Fork-Offset": inherited}
    assert (await create(browser, "ann/fork2", "x", headers=at_first)).status_code == 201
    assert (await browser.get(path("ann/fork2"))).content == b"ax"
    assert (await browser.get(path("ann/fork2", inherited))).content == b"x"
    assert (await browser.get(path("ann/fork2", end))).status_code == 410


async def test_forks_accept_the_offsets_of_a_limited_number_of_streams(
    browser: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forking, "MAX_ANCESTORS", 1)
    first = (await create(browser)).headers["Stream-Next-Offset"]
    second = (await create(browser, "ann/2", "", headers=FORK)).headers["Stream-Next-Offset"]
    await create(browser, "ann/3", "", headers={"Stream-Forked-From": "ann/2"})
    assert (await browser.get(path("ann/3", second))).status_code == 200
    assert (await browser.get(path("ann/3", first))).status_code == 410
