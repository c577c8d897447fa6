"""The setting `CORS_ORIGINS` decides which pages of other origins may read events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from django.test import override_settings

from reliable_cable import CableConsumer
from reliable_cable.http import CableHTTP

from .http_fronts import Receiver, body_messages, call, elsewhere, make_scope

LISTED, OTHER = "https://app.example.com", "https://other.example.com"


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    with override_settings(RELIABLE_CABLE={"ENGINE": "memory", "SECRET": "a secret", "CORS_ORIGINS": [LISTED]}):
        yield


async def answer_to(method: str, headers: Mapping[str, str]) -> Any:
    """Return the response to a request that subscribes to nothing."""
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    application = CableHTTP(elsewhere, consumer=CableConsumer)
    return await call(application, make_scope(method, "/events", encoded), Receiver(body_messages(b"")))


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
async def test_pages_of_a_listed_origin_may_read_errors_too(method: str) -> None:
    answer = await answer_to(method, {"Origin": LISTED})
    assert answer.status_code == (405 if method == "PUT" else 400)
    assert answer["Access-Control-Allow-Origin"] == LISTED
    assert answer["Access-Control-Allow-Credentials"] == "true"
    assert answer["Vary"] == "Origin"


@pytest.mark.parametrize("headers", [{"Origin": OTHER}, {}])
async def test_no_other_page_may(headers: Mapping[str, str]) -> None:
    answer = await answer_to("GET", headers)
    assert "access-control-allow-origin" not in answer.headers
    assert answer["Vary"] == "Origin"


async def test_browsers_ask_first() -> None:
    answer = await answer_to("OPTIONS", {"Origin": LISTED})
    assert answer.status_code == 204
    assert answer["Access-Control-Allow-Methods"] == "GET, POST"
    answer = await answer_to("OPTIONS", {"Origin": OTHER})
    assert answer.status_code == 204
    assert "access-control-allow-methods" not in answer.headers


async def test_other_methods_are_not_allowed() -> None:
    assert (await answer_to("DELETE", {}))["Allow"] == "GET, POST, OPTIONS"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Cookie": "a=b", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Cookie": "a=b", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Cookie": "a=b", "Sec-Fetch-Site": "same-origin"}, 400),
        ({"Cookie": "a=b"}, 400),
        ({"Sec-Fetch-Site": "cross-site"}, 400),
    ],
)
async def test_pages_of_other_sites_cannot_make_a_visitor_join(headers: Mapping[str, str], status: int) -> None:
    assert (await answer_to("GET", headers)).status_code == status
