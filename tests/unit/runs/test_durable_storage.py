"""Durable streams: times of expiry, tenants, and changes at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import AsyncClient
from django.utils import timezone

from reliable_cable.runs.durable_models import DurableStream
from reliable_cable.runs.http.durable_requests import _time
from tests.unit.runs import chat_client, durable_client
from tests.unit.runs.durable_client import change, create, row

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
    # PostgreSQL does not accept all offsets that Python accepts.
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
