"""The HTTP endpoints check keys and bodies, and report invalid bodies and failures.

Each test runs with the views of Django and with `CableHTTP`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.test import AsyncClient, override_settings

from reliable_cable.broadcasting import ahistory, history
from reliable_cable.conf import derived_secret
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, StoreError
from reliable_cable.http import CableHTTP
from reliable_cable.http.broadcast import MAX_MESSAGES
from reliable_cable.signing import derived_key
from reliable_cable.stores.engine import get_engine
from tests.protocol.test_payloads import FALSY
from tests.unit.http_fronts import Answer, ASGIFront, DjangoFront, Front, elsewhere

SETTINGS = {"ENGINE": "memory", "SECRET": "s", "STREAMS": {"cursor:*": {"history_size": 0}}, "MAX_BROADCAST_SIZE": 1024}
BROADCAST, PUBLISH = "/_broadcast", "/api/publish"


def derived(purpose: str, secret: str) -> str:
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()


BROADCAST_KEY, API_KEY = derived("broadcast-cable", "s"), derived("api-cable", "s")


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    with override_settings(RELIABLE_CABLE=SETTINGS):
        yield


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(params=[DjangoFront, ASGIFront], ids=["views", "CableHTTP"])
def http(request: pytest.FixtureRequest) -> Front:
    """A way to call the HTTP endpoints."""
    front: Front = request.param()
    return front


def post(http: Front, body: Any, path: str = BROADCAST, key: str = BROADCAST_KEY) -> Answer:
    return http.post(body, path, key)


def item(stream: str = "a", data: str = '{"n":1}', **meta: Any) -> dict[str, Any]:
    return {"stream": stream, "data": data, **({"meta": meta} if meta else {})}


def data(stream: str = "a") -> list[Any]:
    return [entry.data for entry in history(stream)]


def error(response: Answer, status: int) -> str:
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/json"
    return str(response.json()["error"])


def check_size(http: Front) -> None:
    largest = json.dumps(item()).encode().ljust(8192)
    assert http.request("POST", BROADCAST, largest, bearer(BROADCAST_KEY)).status_code == 201
    response = http.request("POST", BROADCAST, largest + b" ", bearer(BROADCAST_KEY))
    assert "more than 8192 bytes" in error(response, 413)


class TestKeys:
    @pytest.mark.parametrize(("path", "key"), [(BROADCAST, BROADCAST_KEY), (PUBLISH, API_KEY)])
    def test_the_derived_key_is_accepted(self, http: Front, path: str, key: str) -> None:
        response = post(http, item(), path, key)
        assert (response.status_code, response.content) == (201, b"")
        assert data() == [{"n": 1}]

    @pytest.mark.parametrize("debug", [False, True])
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            *[
                {"Authorization": value}
                for value in (
                    *("", "Bearer", "Bearer ", "Bearer wrong", BROADCAST_KEY, f"Basic {BROADCAST_KEY}"),
                    *(f"Bearer {API_KEY}", f"Bearer {BROADCAST_KEY[:-1]}", "Bearer \u00fc\u4e2d"),
                )
            ],
        ],
    )
    def test_a_request_without_the_key_is_refused_before_its_body_is_decoded(
        self, http: Front, headers: dict[str, str], debug: bool
    ) -> None:
        with override_settings(DEBUG=debug):
            response = http.request("POST", BROADCAST, b"no JSON", headers)
        assert "RELIABLE_CABLE['BROADCAST_KEY']" in error(response, 401)
        assert response["WWW-Authenticate"] == "Bearer"

    def test_the_key_for_broadcasts_is_not_valid_for_the_api(self, http: Front) -> None:
        assert "RELIABLE_CABLE['API_KEY']" in error(post(http, item(), PUBLISH, BROADCAST_KEY), 401)
        assert error(http.get("/api/presence/a/users", BROADCAST_KEY), 401)

    def test_the_name_of_the_scheme_is_case_insensitive(self, http: Front) -> None:
        headers = {"Authorization": f"bearer  {BROADCAST_KEY} "}
        response = http.request("POST", BROADCAST, json.dumps(item()).encode(), headers)
        assert response.status_code == 201

    @pytest.mark.parametrize("key", ["mine", "clé"])
    def test_a_configured_key_replaces_the_derived_key(self, http: Front, key: str) -> None:
        as_header = key.encode().decode("latin-1")  # servers decode headers as Latin-1
        with override_settings(RELIABLE_CABLE={**SETTINGS, "BROADCAST_KEY": key, "API_KEY": "other"}):
            assert post(http, item(), BROADCAST, as_header).status_code == 201
            assert post(http, item(), PUBLISH, "other").status_code == 201
            assert post(http, item(), BROADCAST, BROADCAST_KEY).status_code == 401
            assert post(http, item(), BROADCAST, "other").status_code == 401

    def test_keys_derived_from_fallback_keys_are_accepted_except_from_an_empty_one(self, http: Front) -> None:
        settings = {key: value for key, value in SETTINGS.items() if key != "SECRET"}
        keys = {}
        for secret_key in ("new", "old"):
            with override_settings(SECRET_KEY=secret_key, RELIABLE_CABLE=settings):
                keys[secret_key] = derived_key("broadcast-cable")
        keys["empty"] = derived("broadcast-cable", derived_secret(""))
        with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old", ""], RELIABLE_CABLE=settings):
            assert {name: post(http, item(), key=key).status_code for name, key in keys.items()} == {
                "new": 201,
                "old": 201,
                "empty": 401,
            }


class TestMessages:
    @pytest.mark.parametrize(
        ("text", "payload"),
        [
            ('{"text":"żółw 🐢"}', {"text": "żółw 🐢"}),
            ('"quoted"', "quoted"),
            ("[1]", [1]),
            ("7", 7),
            ("plain text", "plain text"),
            ("{broken", "{broken"),
            ("NaN", "NaN"),
            ("-Infinity", "-Infinity"),
            ('"{\\"twice\\":1}"', '{"twice":1}'),
        ],
    )
    def test_data_is_decoded_once_and_other_text_than_json_is_a_string(
        self, http: Front, text: str, payload: Any
    ) -> None:
        assert post(http, item(data=text)).status_code == 201
        assert data() == [payload]

    def test_json_with_the_content_type_of_a_form_is_accepted_because_curl_sends_it(self, http: Front) -> None:
        headers = {**bearer(BROADCAST_KEY), "Content-Type": "application/x-www-form-urlencoded"}
        assert http.request("POST", BROADCAST, json.dumps(item()).encode(), headers).status_code == 201
        assert data() == [{"n": 1}]

    def test_an_array_is_broadcast_in_order(self, http: Front) -> None:
        assert post(http, [item("a", "1"), item("b", "2"), item("a", "3")]).status_code == 201
        assert (data("a"), data("b")) == ([1, 3], [2])

    def test_an_array_is_stored_by_one_append(self, http: Front) -> None:
        store = get_engine().streams
        with mock.patch.object(store, "append", wraps=store.append) as append:
            post(http, [item("a", "1"), item("b", "2")])
        assert append.call_count == 1

    @pytest.mark.parametrize(
        "invalid", [item(data="null"), item(stream=""), item(idempotency_key=""), item(data='"' + "x" * 1025 + '"'), {}]
    )
    def test_nothing_of_an_array_with_an_invalid_message_is_broadcast(
        self, http: Front, invalid: dict[str, Any]
    ) -> None:
        assert post(http, [item(), invalid, item()]).status_code in (413, 422)
        assert data() == []

    def test_each_message_has_its_own_meta(self, http: Front) -> None:
        store = get_engine().streams
        sids = {"exclude_socket": "sid", "transient": None, "unknown": 1}
        with mock.patch.object(store, "publish_transient", wraps=store.publish_transient) as publish:
            messages = [
                item("a", "1", **sids),
                item("a", "2", transient=True),
                item("a", "3", transient=False),
                {**item("cursor:1", "4"), "meta": None, "more": 1},
            ]
            assert post(http, messages).status_code == 201
        entries = store.read("a", after=0, limit=10).entries
        assert [(entry.data, entry.exclude) for entry in entries] == [("1", "sid"), ("3", "")]
        assert [(call.args[0], call.args[1].data) for call in publish.call_args_list] == [("a", "2"), ("cursor:1", "4")]

    def test_a_message_with_a_repeated_idempotency_key_is_not_broadcast(self, http: Front) -> None:
        for _ in range(2):
            assert post(http, item(idempotency_key="k")).status_code == 201
        assert data() == [{"n": 1}]


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            ("", "is not JSON"),
            ("stream=a&data=1", "is not JSON"),
            (b'{"stream":"\xff","data":"1"}', "is not JSON"),
            ("[" * 7000, "The body has more than 64 levels"),
            ("[]", "The array is empty"),
            ("1", "The body is not an object"),
            ([item(), "x"], "Message 2 of 2 is not an object"),
            ({"data": "1"}, 'no "stream" that is a string'),
            ({"stream": 5, "data": "1"}, 'no "stream" that is a string'),
            ({"stream": "a"}, 'no "data" that is a string'),
            ({"stream": "a", "data": {"n": 1}}, 'no "data" that is a string'),
            ({"stream": "a", "data": "1", "meta": []}, '"meta" that is not an object'),
            (item(exclude_socket=5), '"exclude_socket" that is not a string'),
            (item(transient="yes"), '"transient" that is not true or false'),
        ],
    )
    def test_a_malformed_body_is_refused_with_an_example(self, http: Front, body: Any, problem: str) -> None:
        message = error(post(http, body), 422)
        assert problem in message
        assert '{"stream": "<name>", "data": "<JSON text>"' in message

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            *[(item(data=text), "falsy in JavaScript") for text in ("", " 0 ", *FALSY)],
            (item(data="1e999"), "cannot be encoded as JSON"),
            (item(data='"\\ud800"'), "cannot be encoded as JSON"),
            (item(""), "1 to 255 are allowed"),
            (item("x" * 256), "1 to 255 are allowed"),
            (item("a\nb"), "control characters"),
            (item(idempotency_key="x" * 256), "1 to 255 characters"),
            (item("cursor:1", idempotency_key="k"), "keeps no history"),
            (item(idempotency_key="k", transient=True), "transient message is not stored"),
        ],
    )
    def test_an_invalid_message_is_refused(self, http: Front, body: Any, problem: str) -> None:
        assert problem in error(post(http, body), 422)

    def test_a_payload_that_is_nested_too_deeply_is_refused(self, http: Front) -> None:
        assert post(http, item(data="[" * 64 + "]" * 64)).status_code == 201
        assert "payload for 'a' has more than 64 levels" in error(post(http, item(data="[" * 65 + "]" * 65)), 422)

    def test_a_payload_that_is_too_large_is_refused(self, http: Front) -> None:
        assert post(http, item(data=f'"{"x" * 1022}"')).status_code == 201
        message = error(post(http, item(data=f'"{"x" * 1023}"')), 413)
        assert "RELIABLE_CABLE['MAX_BROADCAST_SIZE'] allows 1024" in message

    def test_a_body_that_is_too_large_is_refused(self, http: Front) -> None:
        check_size(http)

    @pytest.mark.parametrize("application", [CableHTTP(elsewhere), ASGIHandler()], ids=["CableHTTP", "views"])
    def test_a_body_without_a_length_that_is_too_large_is_refused(self, application: Any) -> None:
        check_size(ASGIFront(application, chunked=True))

    def test_an_array_that_is_too_long_is_refused(self, http: Front) -> None:
        with override_settings(RELIABLE_CABLE={**SETTINGS, "MAX_BROADCAST_SIZE": 100_000}):
            assert post(http, [item("large:", "1")] * MAX_MESSAGES).status_code == 201
            message = error(post(http, [item("a", "1")] * (MAX_MESSAGES + 1)), 413)
        assert message == "The array has 1001 messages; 1000 are allowed."
        assert data() == []

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
    def test_other_methods_are_not_allowed(self, http: Front, method: str) -> None:
        for path in (BROADCAST, PUBLISH):
            response = http.request(method, path, b"", bearer(BROADCAST_KEY))
            assert (response.status_code, response["Allow"], response.content) == (405, "POST", b"")
        response = http.request("DELETE", "/api/presence/a/users", b"", bearer(API_KEY))
        assert (response.status_code, response["Allow"], response.content) == (405, "GET, HEAD", b"")


class TestFailures:
    def test_a_failing_store_is_reported_and_logged(self, http: Front, caplog: pytest.LogCaptureFixture) -> None:
        with mock.patch.object(get_engine().streams, "append", side_effect=BroadcastError("disk of db1 is full")):
            response = post(http, item())
        assert error(response, 503) == "Nothing was broadcast: the store failed. Try again."
        assert response.json()["stored"] is False
        assert "disk of db1 is full" in caplog.text

    def test_an_append_without_a_response_is_reported_as_unknown(self, http: Front) -> None:
        with mock.patch.object(get_engine().streams, "append", side_effect=BroadcastUncertain("lost")):
            response = post(http, item())
        assert "is unknown" in error(response, 503)
        assert response.json()["stored"] is None

    def test_a_batch_whose_transient_messages_were_not_sent_succeeds_so_that_it_is_not_repeated(
        self, http: Front, caplog: pytest.LogCaptureFixture
    ) -> None:
        with mock.patch.object(get_engine().streams, "publish_transient", side_effect=BroadcastError("down")):
            assert post(http, [item("a", "1"), item("a", "2", transient=True)]).status_code == 201
            assert post(http, item("a", "2", transient=True)).status_code == 503
        assert data() == [1]
        assert "transient messages of a batch could not be sent" in caplog.text

    def test_a_failing_presence_store_is_reported(self, http: Front) -> None:
        with mock.patch.object(get_engine().presence, "info", side_effect=StoreError("down")):
            response = http.get("/api/presence/a/users", API_KEY)
        assert "Try again" in error(response, 503)

    def test_members_that_are_in_anycable_go_are_reported_with_a_remedy(self, http: Front) -> None:
        with override_settings(RELIABLE_CABLE={"BROADCAST_ADAPTER": "http", "SECRET": "s"}):
            response = http.get("/api/presence/a/users", API_KEY)
        assert "set API_URL" in error(response, 501)

    @pytest.mark.django_db(transaction=True)
    def test_a_failure_is_reported_in_a_project_with_atomic_requests(self, http: Front) -> None:
        with (
            mock.patch.dict(connections.settings["default"], ATOMIC_REQUESTS=True),
            mock.patch.object(get_engine().streams, "append", side_effect=BroadcastError("full")),
        ):
            assert post(http, item()).status_code == 503


class TestPresence:
    def users(self, http: Front, stream: str) -> Answer:
        return http.get(f"/api/presence/{quote(stream, safe='')}/users", API_KEY)

    def test_the_response_has_the_members(self, http: Front) -> None:
        store = get_engine().presence
        store.join("room", "s1", "42", {"name": "Ann"})
        store.join("room", "s2", "7")
        response = self.users(http, "room")
        assert response.status_code == 200
        assert response["Content-Type"] == "application/json"
        assert response["Cache-Control"] == "max-age=0, no-cache, no-store, must-revalidate, private"
        assert parsedate_to_datetime(response["Expires"]) <= datetime.now(UTC)
        assert response.json() == {
            "type": "info",
            "total": 2,
            "records": [{"id": "42", "info": {"name": "Ann"}}, {"id": "7", "info": None}],
        }

    def test_head_has_the_headers_without_the_body(self, http: Front) -> None:
        response = http.request("HEAD", "/api/presence/room/users", b"", bearer(API_KEY))
        assert (response.status_code, response["Content-Type"], response.content) == (200, "application/json", b"")

    def test_the_response_for_an_empty_stream_has_no_members(self, http: Front) -> None:
        assert self.users(http, "empty").json() == {"type": "info", "total": 0, "records": []}

    @pytest.mark.parametrize(
        "stream", ["chat/1", "/", "a//b", "100%", "50%25", "a/users", "users", "a b+c?d#e", "żółw", "..", "a;b=c"]
    )
    def test_stream_names_may_have_any_printable_character(self, http: Front, stream: str) -> None:
        get_engine().presence.join(stream, "s", "42")
        assert self.users(http, stream).json()["total"] == 1

    def test_slashes_in_stream_names_need_no_escapes(self, http: Front) -> None:
        get_engine().presence.join("chat/1", "s", "42")
        assert http.get("/api/presence/chat/1/users", API_KEY).json()["total"] == 1

    @pytest.mark.parametrize("stream", ["x" * 256, "a\x00b"])
    def test_an_invalid_stream_name_is_refused(self, http: Front, stream: str) -> None:
        assert "allowed" in error(self.users(http, stream), 422)


@pytest.mark.parametrize("middleware", [[], ["django.contrib.auth.middleware.LoginRequiredMiddleware"]])
@pytest.mark.django_db(transaction=True)
async def test_the_endpoints_work_in_an_async_project(middleware: list[str], settings: Any) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.csrf.CsrfViewMiddleware", *middleware]
    client = AsyncClient(enforce_csrf_checks=True)
    options: Any = {"content_type": "application/json", "headers": bearer(BROADCAST_KEY)}
    response = await client.post(BROADCAST, json.dumps(item()), **options)
    assert response.status_code == 201
    assert [entry.data for entry in await ahistory("a")] == [{"n": 1}]
    response = await client.post(BROADCAST, "x" * 10_000, **options)
    assert response.status_code == 413
    users = await AsyncClient().get("/api/presence/a/users", headers=bearer(API_KEY))
    assert users.json() == {"type": "info", "total": 0, "records": []}
