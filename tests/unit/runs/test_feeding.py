"""The events of the client libraries of language models become text and parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from anthropic.types import ErrorResponse, Message, TextBlock
from openai.lib.streaming.chat import ChunkEvent, ContentDeltaEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from reliable_cable.runs.exceptions import RunFailed
from reliable_cable.runs.feeding import Feeder
from tests.unit.runs.model_events import (
    CHAT_USAGE,
    COMPLETED,
    CREATED,
    HELPER_EVENT,
    MESSAGE_STOP,
    Output,
    block_delta,
    chunk,
    feed,
    message_delta,
    message_event,
    message_start,
    piece,
    response,
    response_event,
    response_usage,
    unknown,
)

# -- the Responses API ------------------------------------------------------------------------------------------------


def test_text_of_a_response() -> None:
    out = feed(
        [
            CREATED,
            response_event("response.output_text.delta", delta="Hel"),
            response_event("response.output_text.delta", delta="lo"),
            response_event("response.output_text.done", text="Hello"),
            response_event("response.refusal.delta", delta="No."),
            response_event("response.refusal.done", refusal="No."),
            COMPLETED,
        ]
    )
    assert out.written == ["Hel", "lo", "No."]
    assert out.usage["input_tokens"] == 1


def test_reasoning_of_a_response() -> None:
    part = {"type": "summary_text", "text": ""}
    out = feed(
        [
            response_event("response.reasoning_summary_part.added", part=part),
            response_event("response.reasoning_summary_text.delta", delta="a"),
            response_event("response.reasoning_summary_part.added", part=part, summary_index=1),
            response_event("response.reasoning_summary_text.delta", delta="b"),
            response_event("response.reasoning_text.delta", delta="c"),
        ]
    )
    assert out.written == [("reasoning", text) for text in ("a", "\n\n", "b", "c")]


def test_a_tool_call_of_a_response_is_written_once_when_it_is_complete() -> None:
    call = {"type": "function_call", "id": "i", "call_id": "c", "name": "f", "arguments": ""}
    out = feed(
        [
            response_event("response.output_item.added", item=call),
            response_event("response.function_call_arguments.delta", delta='{"x":'),
            response_event("response.function_call_arguments.delta", delta="1}"),
            response_event("response.function_call_arguments.done", arguments='{"x":1}', name="f"),
            response_event("response.output_item.done", item={**call, "arguments": '{"x":1}', "status": "completed"}),
            response_event("response.output_item.done", item={**call, "arguments": '{"x":', "status": "incomplete"}),
            response_event(
                "response.output_item.done",
                item={"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "text"},
            ),
        ]
    )
    assert out.written == [("c", "f", {"x": 1}), ("d", "g", "text")]


def test_web_pages_that_a_response_cites_are_sources() -> None:
    page = {"type": "url_citation", "start_index": 0, "end_index": 1, "url": "https://example.com/", "title": "T"}
    file = {"type": "file_citation", "file_id": "f", "filename": "n", "index": 0}
    events = [
        response_event("response.output_text.annotation.added", annotation_index=0, annotation=annotation)
        for annotation in (page, file)
    ]
    events.append(events[0].model_copy(update={"annotation": page}))
    assert feed(events).written == [("https://example.com/", "T")] * 2


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (
            response_event(
                "response.incomplete",
                response=response(usage=response_usage(1), incomplete_details={"reason": "max_output_tokens"}),
            ),
            "cut off",
        ),
        (
            response_event(
                "response.incomplete",
                response=response(usage=response_usage(1), incomplete_details={"reason": "content_filter"}),
            ),
            "filter",
        ),
        (
            response_event(
                "response.failed",
                response=response(
                    usage=response_usage(1), error={"code": "rate_limit_exceeded", "message": "secret org-1"}
                ),
            ),
            "busy",
        ),
        (
            response_event(
                "response.failed",
                response=response(usage=response_usage(1), error={"code": "server_error", "message": "secret"}),
            ),
            "could not answer",
        ),
    ],
    ids=["too long", "filtered", "busy", "failed"],
)
def test_a_response_that_fails_has_a_message_for_users(event: Any, message: str) -> None:
    out = Output()
    feeder = Feeder(out)
    feeder.feed(CREATED)
    with pytest.raises(RunFailed, match=message) as caught:
        feeder.feed(event)
    assert "secret" not in str(caught.value)
    if event.response.error is not None:
        assert event.response.error.message in caught.value.__notes__[0], "developers read what the server said"
    assert out.usage["input_tokens"] == 1
    feeder.end()


# -- the Chat Completions API -----------------------------------------------------------------------------------------


def test_text_of_a_chat() -> None:
    out = feed(
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Hel"}),
            chunk({"content": "lo"}),
            chunk({"refusal": "No."}),
            chunk({}, "stop"),
            chunk(usage=CHAT_USAGE),
        ]
    )
    assert out.written == ["Hel", "lo", "No."]
    assert out.usage == CHAT_USAGE


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_of_compatible_servers(name: str) -> None:
    assert feed([chunk({name: "a"}), chunk({"content": "b"}, "stop")]).written == [("reasoning", "a"), "b"]


def test_tool_calls_of_a_chat_are_written_once_when_they_are_complete() -> None:
    out = Output()
    feeder = Feeder(out)
    feeder.feed(chunk({"tool_calls": [piece(0, "", id="c", type="function", name="f")]}))
    feeder.feed(chunk({"tool_calls": [piece(1, "", id="d", type="function", name="g")]}))
    feeder.feed(chunk({"tool_calls": [piece(0, '{"x":'), piece(1, None)]}))
    feeder.feed(chunk({"tool_calls": [piece(0, "1}", id="c")]}))
    assert out.written == []
    feeder.feed(chunk({}, "tool_calls"))
    feeder.end()
    assert out.written == [("c", "f", {"x": 1}), ("d", "g", {})]


def test_calls_with_one_index_and_several_ids_are_several_calls() -> None:
    calls = [piece(0, "{}", id="c", name="f"), piece(0, "{}", id="d", name="g")]
    assert feed([chunk({"tool_calls": calls}, "tool_calls")]).written == [("c", "f", {}), ("d", "g", {})]


@pytest.mark.parametrize("arguments", ['{"x":', "NaN", "[" * 100_000])
def test_arguments_that_are_no_json_are_kept_as_text(arguments: str) -> None:
    calls = [piece(0, arguments, id="c", name="f")]
    assert feed([chunk({"tool_calls": calls}, "tool_calls")]).written == [("c", "f", arguments)]


@pytest.mark.parametrize(("reason", "message"), [("length", "cut off"), ("content_filter", "filter")])
def test_a_chat_that_is_cut_off_fails_after_its_usage(reason: str, message: str) -> None:
    out = Output()
    feeder = Feeder(out)
    feeder.feed(chunk({"tool_calls": [piece(0, '{"x":', id="c", name="f")]}))
    feeder.feed(chunk({}, reason))
    feeder.feed(chunk(usage=CHAT_USAGE))
    assert out.usage == CHAT_USAGE
    assert out.written == [], "the arguments of the call are not complete"
    with pytest.raises(RunFailed, match=message):
        feeder.feed(chunk({"content": "next"}, chat="chat_2"))


def test_the_helper_of_openai_repeats_nothing() -> None:
    """`client.chat.completions.stream()` yields each chunk, and other events that say the same."""
    events = [
        ChunkEvent.construct(type="chunk", chunk=chunk({"content": "a"}, "stop")),
        ContentDeltaEvent(type="content.delta", delta="a", snapshot="a"),
    ]
    assert feed(events).written == ["a"]


def test_what_azure_sends() -> None:
    """The first chunk has neither an id nor choices; chunks of its content filter have no delta."""
    first = chunk(chat="").model_copy(update={"object": ""})
    filtered = ChatCompletionChunk.construct(object="chat.completion.chunk", choices=[{"index": 0}])
    assert feed([first, chunk({"content": "a"}), filtered, chunk({}, "stop")]).written == ["a"]


# -- the Messages API -------------------------------------------------------------------------------------------------


def test_text_and_reasoning_of_a_message() -> None:
    out = feed(
        [
            message_start(),
            message_event("content_block_start", content_block={"type": "thinking", "thinking": "", "signature": ""}),
            block_delta("thinking_delta", thinking="Hm."),
            block_delta("signature_delta", signature="x"),
            message_event("content_block_stop"),
            message_event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
            block_delta("text_delta", 1, text="Hel"),
            block_delta("text_delta", 1, text="lo"),
            message_event("content_block_stop", index=1),
            message_delta("end_turn"),
            MESSAGE_STOP,
        ]
    )
    assert out.written == [("reasoning", "Hm."), "Hel", "lo"]
    assert out.usage == {"input_tokens": 3, "output_tokens": 5}


def test_a_tool_call_of_a_message_is_written_once_when_it_is_complete() -> None:
    out = Output()
    feeder = Feeder(out)
    block = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    feeder.feed(message_event("content_block_start", content_block=block))
    feeder.feed(message_event("content_block_start", index=1, content_block={**block, "id": "d", "name": "g"}))
    feeder.feed(block_delta("input_json_delta", partial_json='{"x":'))
    feeder.feed(block_delta("input_json_delta", 1, partial_json=""))
    feeder.feed(block_delta("input_json_delta", partial_json="1}"))
    assert out.written == []
    feeder.feed(message_event("content_block_stop"))
    feeder.feed(message_event("content_block_stop", index=1))
    assert out.written == [("c", "f", {"x": 1}), ("d", "g", {})]


def test_tools_of_the_provider_are_ignored() -> None:
    block = {"type": "server_tool_use", "id": "c", "name": "web_search", "input": {}}
    events = [
        message_event("content_block_start", content_block=block),
        block_delta("input_json_delta", partial_json="{}"),
        message_event("content_block_stop"),
    ]
    assert feed(events).written == []


def test_web_pages_that_a_message_cites_are_sources() -> None:
    page = {
        "type": "web_search_result_location",
        "cited_text": "",
        "encrypted_index": "",
        "url": "https://example.com/",
    }
    place = {"type": "char_location", "cited_text": "", "document_index": 0, "start_char_index": 0, "end_char_index": 1}
    events = [block_delta("citations_delta", citation=citation) for citation in (page, place)]
    assert feed(events).written == [("https://example.com/", "")]


@pytest.mark.parametrize(
    ("reason", "message"),
    [("max_tokens", "cut off"), ("refusal", "filter"), ("model_context_window_exceeded", "too long")],
)
def test_a_message_that_is_cut_off_fails_with_its_usage(reason: str, message: str) -> None:
    out = Output()
    feeder = Feeder(out)
    feeder.feed(message_start())
    with pytest.raises(RunFailed, match=message):
        feeder.feed(message_delta(reason))
    assert out.usage["output_tokens"] == 5
    feeder.end()


def test_the_helper_of_anthropic_repeats_nothing() -> None:
    """`client.messages.stream()` yields each text twice, in events of two types."""
    text = HELPER_EVENT.validate_python({"type": "text", "text": "a", "snapshot": "a"})
    assert feed([block_delta("text_delta", text="a"), text]).written == ["a"]


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (response_event("error", code="rate_limit_exceeded", message="secret"), "busy"),
        (response_event("error", code=None, message="secret"), "could not answer"),
        (
            ErrorResponse.model_validate({"type": "error", "error": {"type": "overloaded_error", "message": "secret"}}),
            "busy",
        ),
        (
            ErrorResponse.model_validate({"type": "error", "error": {"type": "api_error", "message": "secret"}}),
            "could not answer",
        ),
    ],
    ids=["openai busy", "openai", "anthropic busy", "anthropic"],
)
def test_an_error_has_a_message_for_users(event: Any, message: str) -> None:
    with pytest.raises(RunFailed, match=message) as caught:
        feed([event])
    assert "secret" not in str(caught.value)
    assert "secret" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "event",
    [CREATED, chunk({"content": "a"}), message_start()],
    ids=["responses", "chat", "messages"],
)
def test_an_answer_without_its_end_was_interrupted(event: Any) -> None:
    with pytest.raises(RunFailed, match="interrupted"):
        feed([event])


@pytest.mark.parametrize(
    ("answers", "usage"),
    [
        (
            [CREATED, COMPLETED, CREATED, COMPLETED],
            {
                "input_tokens": 2,
                "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
                "output_tokens": 4,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 6,
            },
        ),
        (
            [
                *(chunk({"content": "a"}), chunk({}, "stop"), chunk(usage=CHAT_USAGE)),
                *(chunk({"content": "b"}, chat="chat_2"), chunk({}, "stop", chat="chat_2", usage=CHAT_USAGE)),
            ],
            {
                "prompt_tokens": 2,
                "completion_tokens": 4,
                "total_tokens": 6,
                "prompt_tokens_details": {"cached_tokens": 2},
            },
        ),
        (
            [message_start(), message_delta("tool_use"), MESSAGE_STOP] * 2,
            {"input_tokens": 6, "output_tokens": 10},
        ),
    ],
    ids=["responses", "chat", "messages"],
)
def test_the_usage_of_several_answers_is_added(answers: list[Any], usage: Any) -> None:
    counted = dict(feed(answers).usage)
    assert {name: counted[name] for name in usage} == usage


@pytest.mark.parametrize(
    "event",
    [
        response_event("response.in_progress", response=response()),
        response_event("response.web_search_call.searching"),
        unknown(type(CREATED), "response.news"),
        unknown(type(CREATED), "keepalive"),
        unknown(type(MESSAGE_STOP), "message_news"),
        unknown(type(MESSAGE_STOP), "ping"),
        block_delta("text_delta", text="").model_copy(update={"delta": SimpleNamespace(type="news_delta")}),
        message_event("content_block_start", content_block={"type": "redacted_thinking", "data": ""}),
        SimpleNamespace(type="response.news"),
    ],
    ids=lambda event: str(event.type),
)
def test_unknown_types_of_events_are_ignored(event: Any) -> None:
    assert feed([event]).written == []


@pytest.mark.parametrize(
    "event",
    [
        None,
        b"a",
        {"type": "response.output_text.delta", "delta": "a"},
        ("id", "resp_1"),
        SimpleNamespace(type="text", text="a"),
        SimpleNamespace(type=1),
        SimpleNamespace(object="", text="a"),
        TextBlock(type="text", text="a"),
        Response.construct(object="response"),
        ChatCompletion.construct(object="chat.completion", choices=[]),
        Message.construct(type="message"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_other_objects_are_refused(event: object) -> None:
    with pytest.raises(TypeError, match=rf"openai.*anthropic.* {type(event).__name__}\."):
        feed([event])
