"""Runs are written with the official clients of language models, against a server that speaks their format."""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, Final

import anthropic
import openai
import pytest
from asgiref.sync import async_to_sync
from django.db import connection

from reliable_cable import history
from reliable_cable.runs.exceptions import RunFailed
from reliable_cable.runs.models import Run, Status
from reliable_cable.runs.writing import FAILED, awriting, writing

pytestmark = pytest.mark.django_db(transaction=True)

#: How long, in seconds, the clients wait for the next bytes where a test waits for the time-out.
TIMEOUT: Final = 2.0

Event = Mapping[str, Any]


@pytest.fixture(autouse=True)
def _engine(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}


@pytest.fixture
def run() -> Run:
    return Run.objects.start()


# -- the server -------------------------------------------------------------------------------------------------------


class ModelServer(ThreadingHTTPServer):
    """Answers each request with the same events, and then ends the answer in one of several ways."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ModelHandler)
        self.events: Sequence[Event] = ()
        self.end: Callable[[ModelHandler], None] = complete
        #: The paths of requests.
        self.paths: list[str] = []
        #: Set when a client has closed its connection while `hold` was waiting.
        self.left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class ModelHandler(BaseHTTPRequestHandler):
    """Handles one request for an answer."""

    protocol_version = "HTTP/1.1"
    server: ModelServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if self.server.end is cut:
            self.send_header("Connection", "close")
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.server.events:
            name = f"event: {event['type']}\n" if "type" in event else ""
            self.send(f"{name}data: {json.dumps(event)}\n\n".encode())
        self.server.end(self)

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        self.wfile.write(data if self.server.end is cut else b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Log nothing."""


def complete(handler: ModelHandler) -> None:
    """End the answer as servers do."""
    if "chat" in handler.path:
        handler.send(b"data: [DONE]\n\n")
    handler.wfile.write(b"0\r\n\r\n")


def cut(handler: ModelHandler) -> None:
    """End the connection without an error, as if the answer were complete. No length was sent."""


def close(handler: ModelHandler) -> None:
    """Close the connection in the middle of the body."""
    handler.close_connection = True


def reset(handler: ModelHandler) -> None:
    """Break the connection."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def hold(handler: ModelHandler) -> None:
    """Send nothing more, until the client closes the connection."""
    handler.close_connection = True
    if select.select([handler.connection], [], [], 60)[0]:
        handler.server.left.set()


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# -- what the server says, in the format of each API ------------------------------------------------------------------


def responses_events() -> Sequence[Event]:
    """Return the events of an answer of the Responses API."""
    response = {"id": "r", "object": "response", "created_at": 0, "model": "m", "output": [], "tools": []}
    usage = {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}
    part = {"type": "output_text", "text": "", "annotations": []}
    complete_part = {**part, "text": "Hello"}
    summary = {"type": "summary_text", "text": ""}
    complete_summary = {**summary, "text": "Hm."}
    items: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "i0", "summary": []},
        {"type": "message", "id": "i1", "role": "assistant", "status": "in_progress", "content": []},
        {"type": "function_call", "id": "i2", "call_id": "c", "name": "find", "arguments": "", "status": "in_progress"},
    ]
    complete_items: list[dict[str, Any]] = [
        {**items[0], "summary": [complete_summary]},
        {**items[1], "status": "completed", "content": [complete_part]},
        {**items[2], "status": "completed", "arguments": '{"x": 1}'},
    ]

    def event(type_: str, index: int | None = None, **values: Any) -> dict[str, Any]:
        place: dict[str, Any] = {} if index is None else {"output_index": index}
        if index is not None and "item" not in values:
            place |= {"item_id": f"i{index}", "summary_index" if index == 0 else "content_index": 0}
        return {"type": f"response.{type_}", **place, **values}

    events = [
        event("created", response={**response, "status": "in_progress"}),
        event("in_progress", response={**response, "status": "in_progress"}),
        event("output_item.added", 0, item=items[0]),
        event("reasoning_summary_part.added", 0, part=summary),
        event("reasoning_summary_text.delta", 0, delta="Hm."),
        event("reasoning_summary_text.done", 0, text="Hm."),
        event("reasoning_summary_part.done", 0, part=complete_summary),
        event("output_item.done", 0, item=complete_items[0]),
        event("output_item.added", 1, item=items[1]),
        event("content_part.added", 1, part=part),
        event("output_text.delta", 1, delta="Hel", logprobs=[]),
        event("output_text.delta", 1, delta="lo", logprobs=[]),
        event("output_text.done", 1, text="Hello", logprobs=[]),
        event("content_part.done", 1, part=complete_part),
        event("output_item.done", 1, item=complete_items[1]),
        event("output_item.added", 2, item=items[2]),
        event("function_call_arguments.delta", 2, delta='{"x":'),
        event("function_call_arguments.delta", 2, delta=" 1}"),
        event("function_call_arguments.done", 2, arguments='{"x": 1}', name="find"),
        event("output_item.done", 2, item=complete_items[2]),
        event("news", text="unknown"),
        {"type": "news", "text": "unknown"},
        event("completed", response={**response, "status": "completed", "output": complete_items, "usage": usage}),
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def chat_events() -> Sequence[Event]:
    """Return the chunks of an answer of the Chat Completions API, by a server that also sends reasoning."""

    def chunk(delta: Mapping[str, Any], finish_reason: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}

    return [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Hm."}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "find", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}]}),
        chunk({}, "tool_calls"),
        {**chunk({}), "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}},
    ]


def messages_events() -> Sequence[Event]:
    """Return the events of an answer of the Messages API."""

    def start(index: int, **block: Any) -> Event:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, **values: Any) -> Event:
        return {"type": "content_block_delta", "index": index, "delta": values}

    def stop(index: int) -> Event:
        return {"type": "content_block_stop", "index": index}

    usage = {"input_tokens": 3, "output_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": usage}
    return [
        {"type": "message_start", "message": message},
        {"type": "ping"},
        start(0, type="thinking", thinking="", signature=""),
        delta(0, type="thinking_delta", thinking="Hm."),
        delta(0, type="signature_delta", signature="x"),
        stop(0),
        start(1, type="text", text=""),
        delta(1, type="text_delta", text="Hel"),
        delta(1, type="text_delta", text="lo"),
        stop(1),
        start(2, type="tool_use", id="c", name="find", input={}),
        delta(2, type="input_json_delta", partial_json='{"x":'),
        delta(2, type="input_json_delta", partial_json=" 1}"),
        stop(2),
        {"type": "news", "text": "unknown"},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]


EVENTS: Final[Mapping[str, Callable[[], Sequence[Event]]]] = {
    "responses": responses_events,
    "chat": chat_events,
    "messages": messages_events,
}

USAGE: Final = {
    "responses": {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8},
    "chat": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    "messages": {"input_tokens": 3, "output_tokens": 5},
}


def up_to_hel(api: str) -> Sequence[Event]:
    """Return the events of an answer up to its first text."""
    events = list(EVENTS[api]())
    return events[: next(number for number, event in enumerate(events) if "Hel" in json.dumps(event)) + 1]


# -- the clients ------------------------------------------------------------------------------------------------------

QUESTION: Final = "Where?"


@contextmanager
def stream(api: str, url: str, seconds: float) -> Iterator[Iterator[Any]]:
    """Ask a model by an API, with the sync client."""
    if api == "messages":
        with (
            anthropic.Anthropic(base_url=url, api_key="k", max_retries=0, timeout=seconds) as claude,
            claude.messages.create(
                model="m", max_tokens=9, messages=[{"role": "user", "content": QUESTION}], stream=True
            ) as messages,
        ):
            yield iter(messages)
        return
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=seconds) as client:
        if api == "chat":
            with client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": QUESTION}], stream=True
            ) as chunks:
                yield iter(chunks)
        else:
            with client.responses.create(model="m", input=QUESTION, stream=True) as events:
                yield iter(events)


@contextmanager
def helper_stream(api: str, url: str) -> Iterator[Iterator[Any]]:
    """Ask a model by an API, with the client's helper for streams."""
    if api == "messages":
        with (
            anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as claude,
            claude.messages.stream(
                model="m", max_tokens=9, messages=[{"role": "user", "content": QUESTION}]
            ) as messages,
        ):
            yield iter(messages)
        return
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        if api == "chat":
            with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": QUESTION}]) as chunks:
                yield iter(chunks)
        else:
            with client.responses.stream(model="m", input=QUESTION) as events:
                yield iter(events)


@asynccontextmanager
async def astream(api: str, url: str, seconds: float) -> AsyncIterator[AsyncIterator[Any]]:
    """Ask a model by an API, with the async client."""
    if api == "messages":
        async with (
            anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0, timeout=seconds) as claude,
            await claude.messages.create(
                model="m", max_tokens=9, messages=[{"role": "user", "content": QUESTION}], stream=True
            ) as messages,
        ):
            yield aiter(messages)
        return
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=seconds) as client:
        if api == "chat":
            async with await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": QUESTION}], stream=True
            ) as chunks:
                yield aiter(chunks)
        else:
            async with await client.responses.create(model="m", input=QUESTION, stream=True) as events:
                yield aiter(events)


@pytest.fixture(params=["sync", "async"])
def answer(request: pytest.FixtureRequest, api: str) -> Callable[..., None]:
    """The task of an application, as a `def` or as an `async def`."""

    def task(run: Run, server: ModelServer, seconds: float = 60) -> None:
        with writing(run.pk) as out, stream(api, server.url, seconds) as events:
            for event in events:
                out.feed(event)

    async def atask(run: Run, server: ModelServer, seconds: float = 60) -> None:
        async with awriting(run.pk) as out, astream(api, server.url, seconds) as events:
            async for event in events:
                out.feed(event)

    return task if request.param == "sync" else async_to_sync(atask)


@pytest.fixture(params=["responses", "chat", "messages"])
def api(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def error_of(answer: Callable[..., None], *args: Any) -> Exception:
    """Return the error with which a task ends."""
    try:
        answer(*args)
    except Exception as error:
        return error
    pytest.fail("The task must raise the error.")


def sent(run: Run) -> list[dict[str, Any]]:
    """Return the events on the stream of a run."""
    return [entry.data for entry in history(run.stream, limit=1000)]


def assert_failed(run: Run, error: str) -> None:
    """Check that a run has failed, and has kept its text."""
    run.refresh_from_db()
    assert (run.status, run.text, run.error) == (Status.FAILED, "Hel", error)
    assert sent(run)[-1] == {"event": "error", "attempt": 1, "message": error}


# -- tests ------------------------------------------------------------------------------------------------------------


def test_an_answer(api: str, answer: Callable[..., None], server: ModelServer, run: Run) -> None:
    server.events = EVENTS[api]()
    answer(run, server)
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.COMPLETED, "Hello")
    assert run.parts == [
        {"type": "reasoning", "text": "Hm.", "at": 0},
        {"type": "tool-call", "id": "c", "name": "find", "input": {"x": 1}, "at": 5},
    ]
    assert {name: run.usage[name] for name in USAGE[api]} == USAGE[api]
    assert server.paths == [{"responses": "/v1/responses", "chat": "/v1/chat/completions"}.get(api, "/v1/messages")]


def test_the_helpers_of_the_clients(api: str, server: ModelServer, run: Run) -> None:
    server.events = [event for event in EVENTS[api]() if "unknown" not in event.values()]
    with writing(run.pk) as out, helper_stream(api, server.url) as events:
        for event in events:
            out.feed(event)
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.COMPLETED, "Hello")
    assert [part["type"] for part in run.parts] == ["reasoning", "tool-call"]


def test_an_error_in_the_middle(api: str, answer: Callable[..., None], server: ModelServer, run: Run) -> None:
    errors: Mapping[str, Event] = {
        "responses": {"type": "error", "code": "server_error", "message": "secret", "sequence_number": 9},
        "chat": {"error": {"code": "server_error", "message": "secret"}},
        "messages": {"type": "error", "error": {"type": "api_error", "message": "secret"}},
    }
    server.events = [*up_to_hel(api), errors[api]]
    raised = error_of(answer, run, server)
    if api == "responses":
        assert isinstance(raised, RunFailed)
        assert_failed(run, str(raised))
    else:
        # The client raises an error of its own.
        assert isinstance(raised, openai.APIError | anthropic.APIError)
        assert_failed(run, FAILED)
    assert "secret" not in run.error


@pytest.mark.parametrize("end", [close, reset])
def test_a_connection_that_breaks(
    end: Callable[[ModelHandler], None], api: str, answer: Callable[..., None], server: ModelServer, run: Run
) -> None:
    server.events, server.end = up_to_hel(api), end
    error_of(answer, run, server)
    assert_failed(run, FAILED)


def test_an_answer_that_ends_too_early(api: str, answer: Callable[..., None], server: ModelServer, run: Run) -> None:
    """The clients do not notice this."""
    server.events, server.end = up_to_hel(api), cut
    raised = error_of(answer, run, server)
    assert isinstance(raised, RunFailed)
    assert_failed(run, "The answer was interrupted. Please try again.")


def test_a_time_out(api: str, answer: Callable[..., None], server: ModelServer, run: Run) -> None:
    server.events, server.end = up_to_hel(api), hold
    raised = error_of(answer, run, server, TIMEOUT)
    assert "Timeout" in type(raised).__name__
    assert_failed(run, FAILED)
    assert server.left.wait(30)


@pytest.mark.parametrize("answer", ["async"], indirect=True)
def test_a_stop_while_the_model_is_silent(api: str, answer: Callable[..., None], server: ModelServer, run: Run) -> None:
    server.events, server.end = up_to_hel(api), hold
    stopping = threading.Thread(target=stop_after_text, args=[run])
    stopping.start()
    answer(run, server)
    stopping.join()
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.STOPPED, "Hel")
    assert sent(run)[-1]["event"] == "stopped"
    assert server.left.wait(30), "the connection to the model was closed"


@pytest.mark.parametrize("answer", ["sync"], indirect=True)
def test_a_stop_while_the_model_writes(api: str, answer: Callable[..., None], server: ModelServer, run: Run) -> None:
    server.events, server.end = up_to_hel(api), repeat
    stopping = threading.Thread(target=stop_after_text, args=[run])
    stopping.start()
    answer(run, server)
    stopping.join()
    run.refresh_from_db()
    assert run.status == Status.STOPPED
    assert set(run.text.split("Hel")) == {""}


def test_a_task_that_leaves_a_stopped_answer(run: Run) -> None:
    """An answer without its end is no error then."""
    with writing(run.pk) as out:
        out.feed(SimpleNamespace(type="response.created"))
        out.feed("Hel")
        run.refresh_from_db()
        run.stop()
        deadline = time.monotonic() + 60
        while not out.stopped:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.STOPPED, "Hel")


def test_feed_takes_only_what_it_understands(run: Run) -> None:
    with writing(run.pk) as out, pytest.raises(TypeError, match="openai"):
        out.feed({"type": "response.output_text.delta"})


def repeat(handler: ModelHandler) -> None:
    """Repeat the last event, until the client closes the connection."""
    event = handler.server.events[-1]
    name = f"event: {event['type']}\n" if "type" in event else ""
    handler.close_connection = True
    while not select.select([handler.connection], [], [], 0.01)[0]:
        try:
            handler.send(f"{name}data: {json.dumps(event)}\n\n".encode())
        except OSError:
            return


def stop_after_text(run: Run) -> None:
    """Stop a run after its text was broadcast."""
    deadline = time.monotonic() + 60
    while not any(event["event"] == "chunk" for event in sent(run)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    Run.objects.get(pk=run.pk).stop()
    connection.close()
