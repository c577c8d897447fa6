"""The endpoints below `/_anycable` of `CableHTTP`, by which anycable-go calls the project over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from reliable_cable import CableConsumer
from reliable_cable.http import CableHTTP
from tests.unit.http_fronts import Answer, Receiver, body_messages, call, elsewhere, make_scope

KEY = "the RPC key"
VALUES = {"env": {"url": "ws://testserver/cable", "headers": {}}}


class FrontedConsumer(CableConsumer):
    def connect(self) -> bool:
        return b"refuse" not in self.scope["query_string"]


application = FrontedConsumer.as_asgi()


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with override_settings(RELIABLE_CABLE={"RPC_CONSUMER": f"{__name__}.application", "RPC_KEY": KEY}):
        yield


async def post(body: bytes, key: str = KEY, method: str = "connect") -> Answer:
    headers = [(b"authorization", f"Bearer {key}".encode()), (b"x-anycable-meta-sid", b"the-sid")]
    scope = make_scope("POST", f"/_anycable/{method}", headers)
    answer = await call(CableHTTP(elsewhere), scope, Receiver(body_messages(body)))
    assert answer is not None
    return answer


async def test_a_call_is_answered() -> None:
    answer = await post(json.dumps(VALUES).encode())
    assert answer.status_code == 200
    assert answer.json()["transmissions"] == ['{"type":"welcome","sid":"the-sid"}']


async def test_a_call_without_the_key_is_refused() -> None:
    assert (await post(json.dumps(VALUES).encode(), key="another")).status_code == 401


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b'{"env": NaN}', "the body is not JSON"),
        (b"[]", "the body is not a JSON object"),
        (b"[" * 10_000, "the body has"),
    ],
)
async def test_a_call_that_is_not_valid_is_refused(body: bytes, problem: str) -> None:
    answer = await post(body)
    assert answer.status_code == 422
    assert problem in answer.content.decode()


async def test_a_value_that_is_not_valid_is_named() -> None:
    answer = await post(b"{}", method="command")
    assert answer.status_code == 422
    assert "command" in answer.content.decode()


async def test_other_methods_do_not_exist() -> None:
    values: Any = json.dumps(VALUES).encode()
    assert (await post(values, method="restore")).status_code == 404
