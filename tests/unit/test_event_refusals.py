"""A refused reader of server-sent events gets the same form of response, whichever code refuses it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from django.test import override_settings

from reliable_cable import CableConsumer, origins
from reliable_cable.http import CableHTTP
from reliable_cable.http.event_request import MAX_BODY_SIZE
from reliable_cable.protocol.constants import DisconnectReason

from .events import SETTINGS, Reader
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
    ("status", "reason", "options"),
    [
        (400, None, {"query": ""}),
        (413, None, {"method": "POST", "body": b"x" * (MAX_BODY_SIZE + 1)}),
        (401, "token_expired", {"consumer": Closed}),
        (403, None, {"query": "channel=Nothing"}),
        (403, "origin", {"headers": {"Cookie": "a=b"}}),
    ],
    ids=["no subscription", "too large", "connect", "all rejected", "origin"],
)
async def test_all_refusals_have_the_same_form(status: int, reason: str | None, options: dict[str, Any]) -> None:
    headers = {"Origin": LISTED, **options.pop("headers", {})}
    with override_settings(RELIABLE_CABLE={**SETTINGS, "CORS_ORIGINS": [LISTED]}):
        answer = await answer_to(headers=headers, **options)
    assert answer.status_code == status
    assert answer.json().pop("error")
    assert answer.json().get("reason") == reason
    assert {name: value for name, value in answer.headers.items() if name != "www-authenticate"} == {
        "content-type": "application/json",
        "content-length": str(len(answer.content)),
        "cache-control": "no-store",
        "access-control-allow-origin": LISTED,
        "access-control-allow-credentials": "true",
        "vary": "Origin",
    }


NOT_LISTED = "RELIABLE_CABLE['CORS_ORIGINS'] does not have this origin"
WITH_COOKIES = "With cookies, the origin must also be allowed to open a WebSocket: by CSRF_TRUSTED_ORIGINS"
OTHER = "https://other.example.com"


class TestOrigins:
    @pytest.fixture(autouse=True)
    def _no_refusal_was_logged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(origins, "_logged_at", -math.inf)

    @pytest.fixture(params=[True, False], ids=["debug", "production"])
    def debug(self, request: pytest.FixtureRequest) -> Iterator[bool]:
        debug: bool = request.param
        with override_settings(RELIABLE_CABLE={**SETTINGS, "CORS_ORIGINS": [LISTED]}, DEBUG=debug):
            yield debug

    @pytest.mark.parametrize(
        ("headers", "problems"),
        [
            ({"Origin": OTHER}, [NOT_LISTED]),
            ({"Origin": OTHER, "Sec-Fetch-Site": "same-site"}, [NOT_LISTED]),
            ({"Origin": OTHER, "Cookie": "a=b"}, [NOT_LISTED, WITH_COOKIES]),
            ({"Origin": LISTED, "Cookie": "a=b"}, [WITH_COOKIES]),
        ],
        ids=["not listed", "same site", "cookies and not listed", "cookies"],
    )
    async def test_the_log_and_the_response_say_what_is_wrong(
        self, headers: dict[str, str], problems: list[str], debug: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        answer = await answer_to(headers={"Host": "www.example.com", **headers})
        assert (answer.status_code, answer.json()["reason"]) == (403, "origin")
        (line,) = [record.getMessage() for record in caplog.records]
        assert f"its Origin is '{headers['Origin']}' and its Host is 'www.example.com'." in line
        assert "WebSocket was refused" not in line
        for problem in (NOT_LISTED, WITH_COOKIES):
            assert (problem in line) is (problem in problems)
            assert (problem in answer.json()["error"]) is (debug and problem in problems)
        if not debug:
            assert answer.json()["error"] == "A request from a page of this origin was refused"

    async def test_a_request_without_an_origin_says_so(self, debug: bool, caplog: pytest.LogCaptureFixture) -> None:
        answer = await answer_to(headers={"Cookie": "a=b", "Sec-Fetch-Site": "cross-site"})
        (line,) = [record.getMessage() for record in caplog.records]
        assert "CORS_ORIGINS" in line
        assert answer.status_code == 403
        assert ("CORS_ORIGINS" in answer.json()["error"]) is debug

    async def test_the_question_of_a_browser_is_logged(self, debug: bool, caplog: pytest.LogCaptureFixture) -> None:
        await answer_to(method="OPTIONS", headers={"Origin": LISTED})
        assert not caplog.records
        await answer_to(method="OPTIONS", headers={"Origin": OTHER})
        (line,) = [record.getMessage() for record in caplog.records]
        assert NOT_LISTED in line

    async def test_a_page_that_may_connect_but_cannot_read_is_logged(
        self, debug: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A page of another port may connect. A proxy may let it read events, so the log warns only in debug mode."""
        headers = [(b"host", b"localhost:8000"), (b"origin", b"http://localhost:5173")]
        with override_settings(ALLOWED_HOSTS=["localhost"]):
            async with Reader("stream=a", headers=[*headers, (b"sec-fetch-site", b"same-site")]) as reader:
                await reader.until("confirm_subscription")
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert [NOT_LISTED in line and "cannot read" in line for line in lines] == ([True] if debug else [])

    async def test_other_refusals_have_no_reason(self, debug: bool) -> None:
        async def refuse(scope: Any, receive: Any, send: Any) -> None:
            """Refuse the handshake, as the middleware of another package does."""
            await send({"type": "websocket.close"})

        assert (await answer_to(consumer=refuse)).json() == {"error": "The client may not connect."}
