"""Each request for server-sent events, with any query, headers and body, is answered without an error."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest
from django.test import override_settings
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reliable_cable import CableConsumer
from reliable_cable.auth.tokens import cable_token
from reliable_cable.http import CableHTTP
from reliable_cable.http.core import Refusal
from reliable_cable.http.cors import PREFLIGHT
from reliable_cable.http.event_request import MAX_BODY_SIZE, read_request
from reliable_cable.protocol import commands
from reliable_cable.signing import signed_stream_name
from tests.support.event_reader import EventParser
from tests.support.examples import examples
from tests.unit.events import SETTINGS, Reader
from tests.unit.http_fronts import elsewhere
from tests.unit.wire import until

ORIGIN = "https://app.example.com"
#: A session engine that needs no database.
SESSIONS = "django.contrib.sessions.backends.signed_cookies"


class Identified(CableConsumer):
    """A consumer whose identifier `room` can come from a token without a user."""

    identified_by = ("user", "room")


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    cable = {**SETTINGS, "JWT_SECRET": "a secret of 32 characters or more", "CORS_ORIGINS": [ORIGIN]}
    with override_settings(RELIABLE_CABLE=cable, SESSION_ENGINE=SESSIONS, DEBUG=True):
        yield


#: The query parameters that the endpoint, the consumer and its middlewares read.
PARAMETERS = (
    "channel identifier stream signed_stream turbo_signed_stream_name history_since raw last_event_id jid pi sid"
).split()
#: The headers that are read, and others that a proxy or a browser may send.
HEADERS = (
    "last-event-id x-jid cookie origin sec-fetch-site host authorization content-length content-type cache-control "
    "x-anycable-restore-sid x-forwarded-for x-forwarded-host sec-websocket-protocol"
).split()
IDENTIFIER = '{"channel":"$pubsub","stream_name":"a"}'
SUBSCRIBE = json.dumps({"command": "subscribe", "identifier": IDENTIFIER}).encode() + b"\n"
#: Values that are nearly valid, which random bytes seldom are.
NEAR: Sequence[bytes] = [
    *(b"a", b"1", b"0", b"-1", b"1e9", b"t", b"{", b"nan", b"*", b"*1/e/a", b"1/e/a", b"0//a", b"%00", b"a" * 3000),
    *(IDENTIFIER.encode(), b'{"channel":1}', b'{"channel":"Nothing"}', b'{"channel":"$pubsub","after":1}'),
    *(
        b"sessionid=x; csrftoken=y",
        b"same-site",
        b"cross-site",
        b"null",
        ORIGIN.encode(),
        b"localhost",
        b"[::1",
        b"a:b:c",
    ),
    *(b"Bearer x", b"anycable-token.x.y.z", b"application/x-www-form-urlencoded", b"9" * 30),
]
values = st.binary(max_size=40) | st.sampled_from(NEAR) | st.sampled_from(["token", "signed stream"])
query_items = st.tuples(st.sampled_from([*PARAMETERS, "unknown", ""]), values)
header_items = st.tuples(st.sampled_from(HEADERS), values)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
positions = st.fixed_dictionaries({"epoch": json_values, "offset": json_values})
histories = st.fixed_dictionaries(
    {}, optional={"since": json_values, "streams": st.dictionaries(st.just("a"), positions)}
)
lines = st.fixed_dictionaries(
    {"command": st.sampled_from(["subscribe"] * 5 + [*commands._PARSERS, "ping", "pong", "nothing"])},
    optional={
        "identifier": st.sampled_from([IDENTIFIER] * 5 + ['{"channel":"Nothing"}', "{}", ""]) | json_values,
        "history": histories | json_values,
        "presence": st.fixed_dictionaries({"id": json_values}, optional={"info": json_values}) | json_values,
        "data": json_values,
        "unknown": json_values,
    },
).map(lambda command: json.dumps(command).encode())
bodies = st.lists(lines | st.binary(max_size=60), max_size=5).map(b"\n".join)


def bytes_of(value: bytes | str) -> bytes:
    """Convert a value of the strategy `values` to bytes."""
    if isinstance(value, bytes):
        return value
    return (cable_token({"room": 7}) if value == "token" else signed_stream_name("a")).encode()


@hypothesis_settings(max_examples=examples(300), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "GET", "GET", "POST", "POST", "OPTIONS", "HEAD", "get", ""]),
    query=st.lists(query_items, max_size=6),
    headers=st.lists(header_items, max_size=5),
    body=bodies,
    part_size=st.integers(1, 200),
    subscribes=st.booleans(),
)
@example("GET", [("stream", b"a"), ("history_since", b"9" * 20)], [], b"", 1, False)
@example("GET", [("stream", b"\xff"), ("last_event_id", b"\xff")], [("last-event-id", b"\x00\xff")], b"", 1, False)
@example("GET", [("stream", b"a")], [("last-event-id", b"1/e/a"), ("last-event-id", b"2/e/a")], b"", 1, False)
@example("POST", [("raw", b"1")], [("content-length", b"-1")], b"x" * (MAX_BODY_SIZE + 1), 1000, False)
async def test_any_request_is_answered(
    caplog: pytest.LogCaptureFixture,
    method: str,
    query: list[tuple[str, bytes | str]],
    headers: list[tuple[str, bytes | str]],
    body: bytes,
    part_size: int,
    subscribes: bool,
) -> None:
    if subscribes:
        query, body = [("stream", b"a"), *query], SUBSCRIBE + body
    text = "&".join(f"{name}={quote_from_bytes(bytes_of(value))}" for name, value in query)
    # A server accepts no control characters in headers, except for tabs.
    sent = [(name.encode(), re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", bytes_of(value))) for name, value in headers]
    parts = [body[start : start + part_size] for start in range(0, len(body), part_size)]
    caplog.clear()
    application = CableHTTP(elsewhere, consumer=Identified)
    async with Reader(text, application=application, headers=sent, method=method, body=parts) as reader:
        await until(lambda: reader.status is not None)
        assert reader.status in (200, 204, 400, 401, 403, 405, 413)
        if reader.status == 200:
            await until(lambda: b"\n\n" in reader.body)
            parser = EventParser()
            for line in reader.body.decode().split("\n"):
                parser.feed(line)
        elif reader.status not in (204, 405):
            assert json.loads(reader.body)["error"]
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@given(bodies | st.binary(max_size=300))
@example(b'{"command":"subscribe","identifier":"{}"}')
@example(b'[]\n{"command":"subscribe"}')
@example(b'{"command":"subscribe","identifier":"{\\"channel\\":\\"A\\"}","presence":{"id":""}}')
def test_any_body_is_read_or_refused(body: bytes) -> None:
    frames: Sequence[str] = ()
    with suppress(Refusal):
        frames = read_request("POST", b"", "", body).frames
    for frame in frames:
        commands.parse(frame)
        frame.encode()


def test_the_error_of_an_invalid_command_names_its_line() -> None:
    error = "Line 3 of the body is not a command: the identifier of 'subscribe' must be a non-empty string."
    with pytest.raises(Refusal, match=re.escape(error)):
        read_request("POST", b"", "", b'{"command":"ping"}\n\n{"command":"subscribe"}')


def test_every_documented_parameter_and_header_is_generated() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
    tables, _, _ = docs.partition("\n## Events\n")
    documented = re.findall(r"^\| `(\w+)", tables, re.MULTILINE)
    assert set(documented) == set(PARAMETERS) - {"sid"}, "sid is for clients with WebSockets, and has no effect here"
    headers = {*re.findall(r"header `([\w-]+)`", docs), *PREFLIGHT["Access-Control-Allow-Headers"].split(", ")}
    responses = {"X-Accel-Buffering", "X-Socket-ID"}
    assert {name.lower() for name in headers - responses} <= set(HEADERS)
