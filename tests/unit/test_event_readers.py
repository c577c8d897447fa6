"""Readers of server-sent events miss nothing if connections break after any byte. Origins and setup are checked."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

import pytest
from django.test import override_settings
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reliable_cable import CableConsumer
from reliable_cable.conf import read_settings
from reliable_cable.exceptions import ProtocolError
from reliable_cable.http import CableHTTP
from reliable_cable.http.core import Refusal
from reliable_cable.http.event_request import read_request
from reliable_cable.protocol import commands
from reliable_cable.protocol.events import Event, FrameEvent, RawEvent, RawFrameEvent
from reliable_cable.servers.base import FRAMES_EXTENSION
from tests.support.event_reader import ServerEvent
from tests.support.examples import examples
from tests.unit.events import SETTINGS, Anyone, Reader, broadcast
from tests.unit.http_fronts import Receiver, body_messages, call, elsewhere, make_scope
from tests.unit.wire import until


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    with override_settings(RELIABLE_CABLE=SETTINGS):
        yield


names = st.sampled_from(["a", "b", "c/d", "ü*"])


@hypothesis_settings(max_examples=examples(40), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rounds=st.lists(st.tuples(st.lists(names, max_size=6), st.lists(names, max_size=6), st.floats(0, 1)), max_size=4),
    streams=st.lists(names, min_size=1, max_size=4, unique=True),
    raw=st.booleans(),
)
@example(rounds=[(["a", "b"], ["b"], 1.0), ([], ["a"], 0.0)], streams=["a", "b"], raw=True)
async def test_a_reader_that_is_cut_after_any_byte_gets_every_message_once(
    rounds: Sequence[tuple[list[str], list[str], float]], streams: list[str], raw: bool
) -> None:
    with override_settings(RELIABLE_CABLE={**SETTINGS, "HISTORY_SIZE": 1000}):
        query = urlencode([*(("stream", each) for each in streams), *([("raw", "1")] if raw else [])])
        received: list[Any] = []
        sent: list[Any] = []
        last_id = ""

        async def say(chosen: list[str]) -> None:
            for stream in chosen:
                if stream in streams:
                    sent.append([stream, sum(each[0] == stream for each in sent) + 1])
                    await broadcast(stream, sent[-1])

        def arrived(events: list[ServerEvent]) -> list[Any]:
            return [json.loads(event.data) for event in events if event.type == "message"]

        def has_all(reader: Reader) -> bool:
            return len(received) + len(arrived(reader.read()[0])) >= len(sent)

        for live, away, part in [*rounds, ([], [], 1.0)]:
            async with Reader(query, last_id) as reader:
                await reader.until("id: ", len(streams))
                # The first time, the browser receives at least the confirmations.
                least = 0 if last_id else len(reader.body)
                await say(live)
                await until(partial(has_all, reader))
            size = least + int((len(reader.body) - least) * part)
            events, new_id = reader.read(size)
            assert not [event for event in events if event.type == "reject_history"]
            received += arrived(events)
            last_id = new_id or last_id
            await say(away)
        async with Reader(query, last_id) as reader:
            await until(partial(has_all, reader))
        received += arrived(reader.read()[0])
        for stream in streams:
            assert [each for each in received if each[0] == stream] == [each for each in sent if each[0] == stream]


def test_what_a_query_requests() -> None:
    query = (
        "channel=A&identifier=%7B%22channel%22%3A%22B%22%7D&stream=s%2F1&signed_stream=x--y&turbo_signed_stream_name=t"
        "&stream=s%2F1"
    )
    request = read_request("GET", query.encode(), "", b"")
    identifiers = [
        '{"channel":"A"}',
        '{"channel":"B"}',
        '{"channel":"$pubsub","stream_name":"s/1"}',
        '{"channel":"$pubsub","signed_stream_name":"x--y"}',
        '{"channel":"Turbo::StreamsChannel","signed_stream_name":"t"}',
    ]
    assert request.identifiers == identifiers
    assert [json.loads(frame) for frame in request.frames] == [
        {"command": "subscribe", "identifier": each} for each in identifiers
    ]
    since = read_request("GET", b"stream=a&history_since=17", "", b"")
    assert json.loads(since.frames[0])["history"] == {"since": 17}
    for raw, form in (("", Event), ("0", Event), ("1", RawEvent), ("T", RawEvent), ("true", RawEvent), ("y", RawEvent)):
        assert read_request("GET", f"stream=a&raw={raw}".encode(), "", b"").form is form
    line = json.dumps({"command": "subscribe", "identifier": identifiers[0]}).encode()
    assert read_request("POST", b"", "", line).form is FrameEvent
    assert read_request("POST", b"raw=1", "", line).form is RawFrameEvent
    # The header is newer than the URL, which a browser never changes.
    assert read_request("GET", b"stream=a&last_event_id=1/e/a", "2/e/a", b"").resumed["a"].offset == 2
    assert read_request("GET", b"stream=a&last_event_id=1/e/a", "", b"").resumed["a"].offset == 1


async def test_too_many_streams_of_a_channel_are_rejected() -> None:
    from reliable_cable import Channel
    from reliable_cable.channel import registry

    class ManyChannel(Channel):
        async def subscribed(self) -> None:
            for number in range(self.params["count"]):
                self.stream_from(f"many {number} {self.params['of']}")

    def query(*counts: int) -> str:
        items = [{"channel": "ManyChannel", "count": each, "of": of} for of, each in enumerate(counts)]
        return urlencode([("identifier", json.dumps(each)) for each in items])

    try:
        async with Reader(query(60, 41)) as reader:
            await reader.until("reject_subscription")
            assert reader.read()[1].count(",") == 59
        async with Reader(query(101)) as reader:
            await reader.until("rejected")
            assert reader.status == 403
    finally:
        del registry["ManyChannel"]


class TestSetup:
    async def test_events_are_served_only_with_a_consumer(self) -> None:
        scope = make_scope("GET", "/events", query_string=b"stream=a")
        answer = await call(CableHTTP(elsewhere), scope, Receiver(body_messages(b"")))
        assert answer is not None
        assert answer.status_code == 404

    async def test_the_path_can_be_moved(self) -> None:
        application = CableHTTP(elsewhere, consumer=Anyone, events="/sse")
        for path, status in (("/events", 404), ("/sse", 400)):
            answer = await call(application, make_scope("GET", path), Receiver(body_messages(b"")))
            assert answer is not None
            assert answer.status_code == status

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"consumer": "Anyone"}, TypeError),
            ({"consumer": Reader}, TypeError),
            ({"consumer": Anyone, "events": "/health"}, ValueError),
            ({"consumer": Anyone, "events": "events"}, ValueError),
        ],
    )
    def test_wrong_arguments_are_refused(self, options: dict[str, Any], error: type[Exception]) -> None:
        with pytest.raises(error, match=r"^CableHTTP\("):
            CableHTTP(elsewhere, **options)

    async def test_middlewares_are_used_as_for_websockets(self) -> None:
        seen: list[Any] = []

        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            seen.append((scope["type"], scope["scheme"], scope["path"]))
            await Anyone.as_asgi()({**scope, "user": None}, receive, send)

        async with Reader("stream=a", application=CableHTTP(elsewhere, consumer=middleware)) as reader:
            await reader.until("confirm_subscription")
        assert seen == [("websocket", "ws", "/events")]

    async def test_a_consumer_that_fails_is_an_error_of_the_server(self) -> None:
        class Broken(CableConsumer):
            async def connect(self) -> None:
                raise KeyError("a fault")

        with pytest.raises(KeyError, match="a fault"):
            async with Reader("stream=a", application=CableHTTP(elsewhere, consumer=Broken)) as reader:
                await reader._task


def test_an_asterisk_stands_for_every_origin() -> None:
    assert read_settings({"CORS_ORIGINS": "*"}).cors_origins == ("*",)


async def test_every_origin_may_read_without_cookies() -> None:
    with override_settings(RELIABLE_CABLE={**SETTINGS, "CORS_ORIGINS": "*"}):
        origin = (b"origin", b"https://anywhere.example")
        async with Reader("stream=a", headers=[origin]) as reader:
            await reader.until("confirm_subscription")
        async with Reader("stream=a", headers=[origin, (b"cookie", b"a=b")]) as reader:
            await reader.until("error")
            assert reader.status == 403


def test_a_command_that_cannot_be_parsed_says_why() -> None:
    with pytest.raises(Refusal, match="the identifier is not JSON"):
        read_request("GET", b"identifier=x", "", b"")
    with pytest.raises(ProtocolError):
        commands.parse_identifier("x")


async def test_a_reader_is_freed_without_a_garbage_collection() -> None:
    connections: list[weakref.ref[object]] = []

    class Watched(CableConsumer):
        async def connect(self) -> None:
            connections.append(weakref.ref(self))
            connections.append(weakref.ref(transport_of(self)))

    def transport_of(consumer: CableConsumer) -> object:
        found: object = consumer.scope["extensions"][FRAMES_EXTENSION]
        return found

    application = CableHTTP(elsewhere, consumer=Watched)
    gc.collect()
    gc.disable()
    try:
        async with Reader("stream=a", application=application) as reader:
            await reader.until("confirm_subscription")
            await broadcast("a", 1)
            await reader.until("data: 1")
        del reader
        await until(lambda: [each() for each in connections] == [None, None])
    finally:
        gc.enable()
