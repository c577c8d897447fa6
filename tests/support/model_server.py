"""A local server that sends answers in the event formats of the APIs of language models."""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

Event = Mapping[str, Any]


class ModelServer(ThreadingHTTPServer):
    """Answers requests with given events, and then ends the answer in one of several ways."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ModelHandler)
        #: The events of the first answers. All later answers consist of `events`.
        self.first: list[Sequence[Event]] = []
        self.events: Sequence[Event] = ()
        self.end: Callable[[ModelHandler], None] = complete
        #: The paths and the bodies of requests.
        self.paths: list[str] = []
        self.bodies: list[Any] = []
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
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.paths.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if self.server.end is cut:
            self.send_header("Connection", "close")
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.server.first.pop(0) if self.server.first else self.server.events:
            name = f"event: {event['type']}\n" if "type" in event else ""
            self.send(f"{name}data: {json.dumps(event)}\n\n".encode())
        self.server.end(self)

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        self.wfile.write(data if self.server.end is cut else b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Log nothing: the base class would write each request to standard error."""


def complete(handler: ModelHandler) -> None:
    """End the answer as a real server does."""
    if "chat" in handler.path:
        handler.send(b"data: [DONE]\n\n")
    handler.wfile.write(b"0\r\n\r\n")


def cut(handler: ModelHandler) -> None:
    """Write nothing more. The connection then ends without an error, although the answer is not complete."""


def close(handler: ModelHandler) -> None:
    """Close the connection in the middle of the body."""
    handler.close_connection = True


def reset(handler: ModelHandler) -> None:
    """Reset the connection in the middle of the body."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def hold(handler: ModelHandler) -> None:
    """Send nothing more. Wait for up to a minute until the client closes the connection."""
    handler.close_connection = True
    if select.select([handler.connection], [], [], 60)[0]:
        handler.server.left.set()


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
