"""Events of the client libraries of language models, for tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from anthropic.lib.streaming import MessageStreamEvent
from anthropic.types import RawMessageStreamEvent
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from reliable_cable.runs.feeding import Feeder

RESPONSE_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


MESSAGE_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


HELPER_EVENT: TypeAdapter[Any] = TypeAdapter(MessageStreamEvent)


class Output:
    """Records what is written to it."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.usage: Mapping[str, Any] = {}

    def write(self, text: str) -> None:
        self.written.append(text)

    def reason(self, text: str) -> None:
        self.written.append(("reasoning", text))

    def tool_call(self, id: str, name: str, input: Any) -> None:  # noqa: A002 - the names in the part
        if input != input:
            raise ValueError("NaN is not a JSON value.")
        self.written.append((id, name, input))

    def source(self, url: str, title: str = "") -> None:
        self.written.append((url, title))

    def count(self, usage: Mapping[str, Any]) -> None:
        self.usage = usage


def feed(events: Iterable[Any], *, complete: bool = True) -> Output:
    """Feed events to a `Feeder`, and return its output."""
    out = Output()
    feeder = Feeder(out)
    for event in events:
        feeder.feed(event)
    if complete:
        feeder.end()
    return out


def response(**values: Any) -> dict[str, Any]:
    """Return a response of the Responses API."""
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 0,
        "model": "m",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        **values,
    }


def response_usage(tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens + 2,
    }


def response_event(type_: str, **values: Any) -> Any:
    """Return an event of the Responses API."""
    common = {"item_id": "i", "output_index": 0, "content_index": 0, "summary_index": 0, "logprobs": []}
    return RESPONSE_EVENT.validate_python({"type": type_, "sequence_number": 0, **common, **values})


CREATED = response_event("response.created", response=response())


COMPLETED = response_event("response.completed", response=response(usage=response_usage(1)))


def chunk(
    delta: Mapping[str, Any] | None = None, finish_reason: str | None = None, *, chat: str = "chat_1", **values: Any
) -> ChatCompletionChunk:
    """Return a chunk of the Chat Completions API."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return ChatCompletionChunk.model_validate(
        {"id": chat, "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": choices, **values}
    )


CHAT_USAGE = {
    "prompt_tokens": 1,
    "completion_tokens": 2,
    "total_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 1},
}


def piece(index: int, arguments: str | None, **values: Any) -> dict[str, Any]:
    """Return a piece of a tool call of the Chat Completions API."""
    function = {"arguments": arguments} | ({"name": values.pop("name")} if "name" in values else {})
    return {"index": index, "function": function, **values}


def message_event(type_: str, **values: Any) -> Any:
    """Return an event of the Messages API."""
    return MESSAGE_EVENT.validate_python({"type": type_, "index": 0, **values})


def message_start(input_tokens: int = 3) -> Any:
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": []}
    return message_event(
        "message_start", message={**message, "usage": {"input_tokens": input_tokens, "output_tokens": 1}}
    )


def block_delta(type_: str, index: int = 0, **values: Any) -> Any:
    return message_event("content_block_delta", index=index, delta={"type": type_, **values})


def message_delta(stop_reason: str, output_tokens: int = 5) -> Any:
    event = message_event("message_delta", delta={}, usage={"output_tokens": output_tokens})
    # The client library does not check this value, because the API may be newer than the library.
    event.delta.stop_reason = stop_reason
    return event


MESSAGE_STOP = message_event("message_stop")


def unknown(cls: Any, type_: str) -> Any:
    """Return an event whose type the client library does not know, as the library constructs such an event."""
    return cls.construct(type=type_, delta=None, more=1)
