"""Readers of server-sent events that are refused: one form of response, whoever refuses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from django.test import override_settings

from reliable_cable import CableConsumer
from reliable_cable.http import CableHTTP
from reliable_cable.http.event_request import MAX_BODY_SIZE
from reliable_cable.protocol.constants import DisconnectReason

from .events import SETTINGS
from .http_fronts import Answer, Receiver, body_messages, call, elsewhere, make_scope

LISTED = "https://app.example.com"


class Closed(CableConsumer):
    """A consumer that lets nobody connect."""

    async def connect(self) -> None:
        self.reject_connection(DisconnectReason.TOKEN_EXPIRED)


async def answer_to(
    query: str = "stream=a",
    headers: Mapping[str, str] | None = None,
    *,
    consumer: Any = CableConsumer,
    method: str = "GET",
    body: bytes = b"",
) -> Answer:
    """Return the response to a request that is refused."""
    encoded = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = make_scope(method, "/events", encoded, query_string=query.encode())
    answer = await call(CableHTTP(elsewhere, consumer=consumer), scope, Receiver(body_messages(body)))
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    ("status", "options"),
    [
        (400, {"query": ""}),
        (413, {"method": "POST", "body": b"x" * (MAX_BODY_SIZE + 1)}),
        (401, {"consumer": Closed}),
        (403, {"query": "channel=Nothing"}),
        (403, {"headers": {"Cookie": "a=b"}}),
    ],
    ids=["no subscription", "too large", "connect", "all rejected", "origin"],
)
async def test_all_refusals_have_the_same_form(status: int, options: dict[str, Any]) -> None:
    headers = {"Origin": LISTED, **options.pop("headers", {})}
    with override_settings(RELIABLE_CABLE={**SETTINGS, "CORS_ORIGINS": [LISTED]}):
        answer = await answer_to(headers=headers, **options)
    assert answer.status_code == status
    assert set(answer.json()) - {"reason"} == {"error"}
    assert answer.json().get("reason") == ("token_expired" if status == 401 else None)
    assert {name: value for name, value in answer.headers.items() if name != "www-authenticate"} == {
        "content-type": "application/json",
        "content-length": str(len(answer.content)),
        "cache-control": "no-store",
        "access-control-allow-origin": LISTED,
        "access-control-allow-credentials": "true",
        "vary": "Origin",
    }
