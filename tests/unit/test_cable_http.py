"""`CableHTTP` serves the HTTP endpoints, and its answers are the same as those of the Django views."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.test import override_settings
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reliable_cable.exceptions import BroadcastError
from reliable_cable.http import CableHTTP
from reliable_cable.namespaces import current_namespace
from reliable_cable.stores.engine import get_engine
from reliable_cable.validation import PER_ITERATION
from tests.unit.http_fronts import (
    Answer,
    ASGIFront,
    DjangoFront,
    Message,
    Receiver,
    body_messages,
    call,
    elsewhere,
    make_scope,
)
from tests.unit.test_http import API_KEY, BROADCAST, BROADCAST_KEY, PUBLISH, SETTINGS, configured, item

__all__ = ["configured"]

ROOT = Path(__file__).resolve().parents[2]
KEY = (b"authorization", f"Bearer {BROADCAST_KEY}".encode())
POSTED = json.dumps(item()).encode()


async def post(application: Any, path: str = BROADCAST, receive: Receiver | None = None, **scope: Any) -> Answer | None:
    """Post a message to an application."""
    return await call(application, make_scope("POST", path, [KEY], **scope), receive or Receiver(body_messages(POSTED)))


def stored() -> int:
    """Return how many messages the stream has."""
    return get_engine().streams.position("a").offset


def status(answer: Answer | None) -> int:
    assert answer is not None
    return answer.status_code


class TestPaths:
    async def test_other_paths_and_scopes_are_passed_on_unchanged(self) -> None:
        passed: list[Any] = []

        async def inner(*arguments: Any) -> None:
            passed.append(arguments)

        scopes: list[Message] = [
            *(make_scope("POST", path) for path in ("/", "/_broadcast/", "//_broadcast", "/x/_broadcast", "/api", "")),
            *(make_scope("GET", f"/api/presence/{rest}") for rest in ("", "users", "/users", "a/users/", "a/user")),
            {"type": "websocket", "path": "/_broadcast", "headers": []},
            {"type": "lifespan"},
        ]
        application = CableHTTP(inner)
        for scope in scopes:
            receive, send = mock.AsyncMock(), mock.AsyncMock()
            await application(scope, receive, send)
            assert passed == [(scope, receive, send)]
            passed.clear()

    async def test_paths_can_be_moved_and_switched_off(self) -> None:
        application = CableHTTP(elsewhere, broadcast="/café/in", publish=None, presence="/who/<stream>", health=None)
        assert status(await post(application, f"/{quote('café')}/in")) == 201
        for path in (BROADCAST, PUBLISH, "/health", "/api/presence/a/users"):
            assert status(await post(application, path)) == 404
        nothing = CableHTTP(elsewhere, broadcast=None, presence=None)
        for path in (BROADCAST, "/api/presence/a/users"):
            assert status(await post(nothing, path)) == 404
        get_engine().presence.join("chat/1", "s", "42")
        users = await call(
            application,
            make_scope("GET", "/who/chat%2F1", [(b"authorization", f"Bearer {API_KEY}".encode())]),
            Receiver([]),
        )
        assert users is not None
        assert users.json()["total"] == 1

    @pytest.mark.parametrize(
        ("paths", "error", "message"),
        [
            ({"broadcast": "_broadcast"}, ValueError, "must begin with a slash"),
            ({"publish": ""}, ValueError, "must begin with a slash"),
            ({"health": "/a b"}, ValueError, "contain none of"),
            ({"health": "/a%20b"}, ValueError, "contain none of"),
            ({"health": "/<stream>"}, ValueError, "contain none of"),
            ({"presence": "/users"}, ValueError, "must contain '<stream>' once"),
            ({"presence": "/<stream>/<stream>"}, ValueError, "must contain '<stream>' once"),
            ({"presence": "/<name>/users"}, ValueError, "contain none of"),
            ({"health": "/_broadcast"}, ValueError, "used twice"),
            ({"broadcast": b"/_broadcast"}, TypeError, "must be a string, or None"),
            ({"presence": 1}, TypeError, "must be a string, or None"),
            ({"health": False}, TypeError, "must be a string, or None"),
        ],
    )
    def test_paths_are_checked_at_construction(
        self, paths: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            CableHTTP(elsewhere, **paths)

    def test_the_application_is_checked_at_construction(self) -> None:
        with pytest.raises(TypeError, match="needs an ASGI application"):
            CableHTTP("project.asgi")  # type: ignore[arg-type]

    @override_settings(TEMPLATES=[])
    @pytest.mark.parametrize("inner", [True, False], ids=["CableHTTP", "views"])
    async def test_a_prefix_is_removed_as_django_does(self, inner: bool) -> None:
        application: Any = CableHTTP(elsewhere) if inner else ASGIHandler()
        assert status(await post(application, "/app/_broadcast", root_path="/app")) == 201
        assert status(await post(application, "/_broadcast", root_path="/app")) == 201
        assert status(await post(application, "/app2/_broadcast", root_path="/app")) == 404
        with override_settings(FORCE_SCRIPT_NAME="/forced"):
            assert status(await post(application, "/forced/_broadcast", root_path="/app")) == 201
        assert status(await post(application, "/app/_broadcast")) == 404
        assert stored() == 3

    async def test_the_names_of_headers_are_in_lower_case_and_the_length_is_that_of_the_body(self) -> None:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        for method in ("GET", "HEAD"):
            await CableHTTP(elsewhere)(make_scope(method, "/api/presence/a/users"), Receiver([]), send)
        lengths = [dict(message["headers"])[b"content-length"] for message in sent[::2]]
        assert lengths == [str(len(sent[1]["body"])).encode()] * 2
        assert sent[3]["body"] == b""
        assert all(name == name.lower() for name, _ in sent[0]["headers"])

    def test_the_application_of_the_documentation_serves_the_endpoints(self) -> None:
        """The page's code runs in a new process, where modules are imported in the order of that code."""
        page = (ROOT / "docs" / "http.md").read_text()
        block = next(text for text in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "get_asgi" in text)
        before = "from django.conf import settings\nsettings.RELIABLE_CABLE = {'ENGINE': 'memory'}\n"
        probe = (
            "from tests.unit.http_fronts import ASGIFront\n"
            "print(ASGIFront(application).request('GET', '/health').content.decode())\n"
        )
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
        done = subprocess.run(
            [sys.executable, "-c", before + block + probe], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.stdout == '{"status": "ok"}\n', done.stderr


class TestBodies:
    async def test_no_more_of_a_body_is_received_than_its_limit(self) -> None:
        receive = Receiver(body_messages(b" " * 100_000))
        assert status(await post(CableHTTP(elsewhere), receive=receive)) == 413
        assert receive.received == 9  # 9 parts of 1024 bytes; 8192 bytes are allowed

    async def test_nothing_of_a_body_is_received_if_its_length_is_too_large_or_the_key_is_wrong(self) -> None:
        receive = Receiver(body_messages(POSTED))
        application = CableHTTP(elsewhere)
        headers = [KEY, (b"content-length", b"8193")]
        assert status(await call(application, make_scope("POST", BROADCAST, headers), receive)) == 413
        assert status(await call(application, make_scope("POST", PUBLISH, [KEY]), receive)) == 401
        assert status(await call(application, make_scope("POST", BROADCAST, [KEY, KEY]), receive)) == 401
        assert receive.received == 0

    @pytest.mark.parametrize("length", [b"", b"x", b"-1", b"9" * 5000, b"\xff"])
    async def test_a_length_that_is_no_number_changes_nothing(self, length: bytes) -> None:
        scope = make_scope("POST", BROADCAST, [KEY, (b"content-length", length)])
        assert status(await call(CableHTTP(elsewhere), scope, Receiver(body_messages(POSTED)))) == 201

    async def test_a_client_that_disconnects_costs_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        for count in range(3):
            messages = body_messages(POSTED, 10)[:count]
            receive = Receiver([*messages, {"type": "http.disconnect"}])
            assert await post(CableHTTP(elsewhere), receive=receive) is None
        assert stored() == 0
        assert caplog.text == ""

    async def test_a_request_that_is_cancelled_leaves_its_namespace(self) -> None:
        with override_settings(RELIABLE_CABLE={**SETTINGS, "NAMESPACE": f"{__name__}.namespace"}):
            task = asyncio.create_task(post(CableHTTP(elsewhere), receive=Receiver([]), tenant="acme"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def test_the_log_has_neither_the_key_nor_the_whole_path(self, caplog: pytest.LogCaptureFixture) -> None:
        application = CableHTTP(elsewhere, broadcast="/" + "x" * 1000)
        with mock.patch.object(get_engine().streams, "append", side_effect=BroadcastError("full")):
            assert status(await post(application, "/" + "x" * 1000)) == 503
        assert "could not be broadcast" in caplog.text
        assert BROADCAST_KEY not in caplog.text
        assert "x" * 300 not in caplog.text


def namespace(scope: Any = None) -> str:
    """The callable of the setting `NAMESPACE`."""
    return str(scope["tenant"]) if scope is not None else ""


class TestNamespaces:
    @pytest.fixture(autouse=True)
    def tenants(self, configured: None) -> Iterator[None]:
        with override_settings(RELIABLE_CABLE={**SETTINGS, "NAMESPACE": f"{__name__}.namespace"}):
            yield

    async def test_a_request_is_made_in_the_namespace_of_its_scope(self) -> None:
        application = CableHTTP(elsewhere)
        assert status(await post(application, tenant="acme")) == 201
        assert current_namespace() == ""
        store = get_engine().streams
        assert store.position("acme\x1fa").offset == 1
        assert store.position("a").offset == 0
        get_engine().presence.join("acme\x1fa", "s", "42")
        key = [(b"authorization", f"Bearer {API_KEY}".encode())]
        for tenant, total in (("acme", 1), ("other", 0)):
            scope = make_scope("GET", "/api/presence/a/users", key, tenant=tenant)
            answer = await call(application, scope, Receiver([]))
            assert answer is not None
            assert answer.json()["total"] == total

    async def test_a_stranger_does_not_reach_the_callable(self) -> None:
        scope = make_scope("POST", BROADCAST)
        assert status(await call(CableHTTP(elsewhere), scope, Receiver(body_messages(POSTED)))) == 401
        assert status(await call(CableHTTP(elsewhere), make_scope("GET", "/health"), Receiver([]))) == 200
        with pytest.raises(KeyError):
            await post(CableHTTP(elsewhere))
        assert stored() == 0


# -- the same answers --------------------------------------------------------------------------------------------------

META = st.dictionaries(
    st.sampled_from(["exclude_socket", "transient", "idempotency_key", "x"]),
    st.none() | st.booleans() | st.text(max_size=5) | st.integers(),
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.text(max_size=5) | st.none(),
        "data": st.text(max_size=9) | st.sampled_from(["1", "null", '{"n": 1}', "[" * 70]) | st.integers(),
        "meta": META | st.none() | st.integers(),
        "command": st.sampled_from(["disconnect", "x", None]),
        "payload": st.none() | st.fixed_dictionaries({"identifier": st.text(max_size=9), "reconnect": st.booleans()}),
    },
)
VALUES = st.recursive(MESSAGES | st.none() | st.booleans() | st.floats() | st.text(max_size=5), st.lists, max_leaves=5)
BODIES = st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode())
HEADER_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30)
AUTHORIZATION = st.one_of(
    HEADER_TEXT,
    HEADER_TEXT.map("Bearer {}".format),
    st.sampled_from([f"Bearer {BROADCAST_KEY}", f"Bearer {API_KEY}", f"BEARER  {API_KEY}"]),
)
# A line feed in a path is a part of a stream's name for `CableHTTP`. The URLs of Django do not match it.
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=8)


def compare(method: str, path: str, body: bytes, authorization: str | None) -> None:
    """Make a request to `CableHTTP` and to the views, and compare the answers."""
    headers = {} if authorization is None else {"Authorization": authorization}
    ours = ASGIFront(CableHTTP(elsewhere)).request(method, path, body, headers)
    theirs = DjangoFront().request(method, path, body, headers)
    assert ours.status_code == theirs.status_code < 500
    if ours.status_code == 404:
        assert ours.headers == {"x-from": "elsewhere"}
        return
    assert ours.content == theirs.content
    names = {"content-type", "allow", "cache-control", "www-authenticate"} - (
        {"content-type"} if not ours.content else set()
    )
    assert {name: ours.headers.get(name) for name in names} == {name: theirs.headers.get(name) for name in names}
    assert ("expires" in ours.headers) == ("expires" in theirs.headers)
    if ours.content and ours.status_code >= 400:
        assert ours.json()["error"]


@hypothesis_settings(deadline=None)
@given(body=BODIES, path=st.sampled_from([BROADCAST, PUBLISH]))
@example(b"x" * 8193, BROADCAST)
def test_both_give_the_same_answers_to_junk_bodies(body: bytes, path: str) -> None:
    compare("POST", path, body, f"Bearer {BROADCAST_KEY if path == BROADCAST else API_KEY}")


@hypothesis_settings(deadline=None)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "PATCH", "junk"]),
    path=st.sampled_from([BROADCAST, PUBLISH, "/api/presence/a/users"]),
    authorization=AUTHORIZATION | st.none(),
)
def test_both_give_the_same_answers_to_junk_headers_and_methods(
    method: str, path: str, authorization: str | None
) -> None:
    compare(method, path, POSTED, authorization)


@hypothesis_settings(deadline=None)
@given(path=PATHS | PATHS.map("/api/presence/{}/users".format) | PATHS.map("/api/presence/{}".format))
@example("/api/presence//users")
@example("/api/presence/users/users")
@example("/_broadcast\0")
def test_both_give_the_same_answers_to_junk_paths(path: str) -> None:
    with override_settings(TEMPLATES=[]):  # so that Django answers 404 with its own page
        compare("GET", quote(f"/{path.lstrip('/')}", safe="/"), b"", f"Bearer {API_KEY}")


async def test_other_tasks_run_while_a_large_array_is_read_and_broadcast(settings: Any) -> None:
    settings.RELIABLE_CABLE = {**SETTINGS, "MAX_BROADCAST_SIZE": 64 * 1024}
    count, turns, ended = 1000, 0, False

    async def turn() -> None:
        nonlocal turns
        while not ended:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(turn())
    body = json.dumps([{**item(), "data": json.dumps({"n": number})} for number in range(count)]).encode()
    assert status(await post(CableHTTP(elsewhere), receive=Receiver(body_messages(body)))) == 201
    ended = True
    await other
    # The other task runs while the messages are read, and again while they are checked and encoded.
    assert turns >= 2 * (count // PER_ITERATION - 1)
    assert stored() == count
