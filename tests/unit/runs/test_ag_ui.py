"""`AgUiEvents` translates the events of a run to events of AG-UI."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest
from ag_ui.core import Event
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from reliable_cable.runs import events
from reliable_cable.runs.http.ag_ui import AgUiEvents, ag_ui_messages, build_messages
from reliable_cable.runs.http.translating import BEGUN_ANEW
from reliable_cable.runs.models import Run, Status
from tests.node import FOLDER, node_modules, require_node
from tests.unit.runs.test_ui_messages import (
    CALL,
    COMPLETE,
    ITEMS,
    RESULT,
    Item,
    event_of,
    snapshot_of,
    split_by_snapshots,
)

QUESTION = {"id": "q1", "role": "user", "content": "why?"}
#: The messages of a client that has asked a question before.
BEFORE = [
    {"id": "q0", "role": "user", "content": "who?"},
    {"id": "0-1", "role": "reasoning", "content": "Hm"},
    {"id": "0-2", "role": "assistant", "content": "Me."},
    QUESTION,
]
_event: TypeAdapter[Any] = TypeAdapter(Event)


def read(
    *given: dict[str, Any], messages: Sequence[dict[str, Any]] | None = None, run: str = "r"
) -> list[dict[str, Any]]:
    """Return the AG-UI events for the events of a run, after checking them with the package of AG-UI."""
    translator = AgUiEvents(run, "t", messages)
    translated = list(translator.start())
    for event in given:
        translated += translator.translate(event)
    for event in translated:
        assert _event.validate_python(event).model_dump(mode="json", by_alias=True) == event
    return translated


def types(translated: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in translated]


def test_a_text() -> None:
    assert read(snapshot_of([]), events.start(1), event_of("Hel"), event_of(""), event_of("lo"), COMPLETE) == [
        {"type": "RUN_STARTED", "threadId": "t", "runId": "r", "protocolVersion": "1.0"},
        {"type": "TEXT_MESSAGE_START", "messageId": "r-1", "role": "assistant"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "r-1", "delta": "Hel"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "r-1", "delta": "lo"},
        {"type": "TEXT_MESSAGE_END", "messageId": "r-1"},
        {"type": "RUN_FINISHED", "threadId": "t", "runId": "r", "usage": [{"outputTokens": 3}]},
    ]


def test_a_late_reader_gets_a_snapshot_and_then_the_rest() -> None:
    partial = {"id": "r-1", "role": "assistant", "content": "H"}
    after = {"id": "q2", "role": "user", "content": "and?"}
    has = [QUESTION, partial, after]
    translated = read(snapshot_of(["Hel", "lo"]), event_of(", you"), COMPLETE, messages=has)
    answer = {**partial, "content": "Hello"}
    empty = {**partial, "role": "reasoning", "content": ""}
    assert translated[1] == {"type": "MESSAGES_SNAPSHOT", "messages": [QUESTION, empty]}
    assert translated[2] == {"type": "MESSAGES_SNAPSHOT", "messages": [QUESTION, answer, after]}
    assert types(translated[3:]) == ["TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END", "RUN_FINISHED"]
    assert build_messages(translated, has) == [QUESTION, {**partial, "content": "Hello, you"}, after]
    # The client keeps its partial answer until content of the next attempt replaces it.
    translated = read(snapshot_of([], 2), event_of("b", 2), {**COMPLETE, "attempt": 2}, messages=has)
    assert types(translated[1:3]) == ["MESSAGES_SNAPSHOT", "MESSAGES_SNAPSHOT"]
    assert build_messages(translated, has)[1]["content"] == "b"
    translated = read(snapshot_of([], status=Status.FAILED, error="Too long."), messages=has)
    assert build_messages(translated, has) == [QUESTION, after]


def test_all_types_of_parts() -> None:
    items: list[Item] = [
        {"type": "reasoning", "text": "Hm"},
        {"type": "reasoning", "text": "m"},
        "Let me look. ",
        CALL,
        {**CALL, "id": "c2", "input": None},
        {**CALL, "id": "c3", "input": '{"city'},
        {**RESULT, "id": "c2", "output": "warm"},
        RESULT,
        "It is ",
        {"type": "source", "url": "https://example.com/", "title": "Example"},
        {"type": "source", "url": "https://example.org/", "title": 1},
        "warm.",
        {"type": "data", "name": "chart", "data": [1]},
        {"type": "data", "name": "chart", "data": None, "id": "main"},
    ]

    def call(id_: str, arguments: str) -> dict[str, Any]:
        return {"id": id_, "type": "function", "function": {"name": "weather", "arguments": arguments}}

    calls = [call("c1", '{"city": "Bern"}'), call("c2", "{}"), call("c3", '{"city')]
    expected: list[dict[str, Any]] = [
        {"id": "r-1", "role": "reasoning", "content": "Hmm"},
        {"id": "r-2", "role": "assistant", "content": "Let me look. ", "toolCalls": calls},
        {"id": "r-3", "role": "tool", "toolCallId": "c2", "content": "warm"},
        {"id": "r-4", "role": "tool", "toolCallId": "c1", "content": '{"celsius": 20}'},
        {"id": "r-5", "role": "assistant", "content": "It is warm."},
    ]
    translated = read(snapshot_of([]), *map(event_of, items), COMPLETE)
    assert build_messages(translated) == expected
    custom = [(event["name"], event["value"]) for event in translated if event["type"] == "CUSTOM"]
    assert custom == [
        ("source", {"url": "https://example.com/", "title": "Example"}),
        ("source", {"url": "https://example.org/"}),
        ("data", {"name": "chart", "data": [1]}),
        ("data", {"name": "chart", "id": "main", "data": None}),
    ]
    late = read(snapshot_of(items), COMPLETE, messages=[])
    assert build_messages(late) == expected
    assert [event for event in late if event["type"] == "CUSTOM"] == [
        event for event in translated if event["type"] == "CUSTOM"
    ]
    content = snapshot_of(items)
    run = Run(status=Status.COMPLETED, text=content["content"], parts=content["parts"])
    assert [message["content"] for message in ag_ui_messages(run)] == [each["content"] for each in expected]
    assert ag_ui_messages(run)[0]["id"] == f"{run.pk}-1"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "future", "text": "?"},
        {"type": "tool-call", "name": "without id"},
        {"type": "tool-result", "id": "unknown", "output": 1},
        {"type": "source", "title": "without URL"},
        {"type": "data", "name": "", "data": "without name"},
    ],
)
def test_parts_that_clients_do_not_know_are_skipped(part: dict[str, Any]) -> None:
    translated = read(snapshot_of([]), event_of("a"), event_of(part), event_of("b"), COMPLETE)
    assert build_messages(translated) == [{"id": "r-1", "role": "assistant", "content": "ab"}]


def test_calls_with_the_same_id() -> None:
    again = {**CALL, "input": {}}
    translated = read(snapshot_of([]), *map(event_of, [CALL, RESULT, RESULT, again, RESULT]), COMPLETE)
    first, _, second, result = build_messages(translated)
    assert (first["toolCalls"][0]["id"], second["toolCalls"][0]["id"]) == ("c1", "c1-2")
    assert result["toolCallId"] == "c1-2"


def test_a_stopped_run_is_cancelled() -> None:
    stopped = {"event": events.STOPPED, "attempt": 1, "usage": {}}
    translated = read(snapshot_of(["a"]), stopped, event_of("late"))
    assert translated[-2:] == [
        {"type": "TEXT_MESSAGE_END", "messageId": "r-1"},
        {"type": "RUN_FINISHED", "threadId": "t", "runId": "r", "outcome": {"type": "cancelled"}},
    ]
    assert translated == read(snapshot_of(["a"], status=Status.STOPPED))


def test_errors() -> None:
    failed = {"event": events.ERROR, "attempt": 1, "message": "Too long."}
    translated = read(snapshot_of(["a"]), failed)
    assert translated[-1] == {"type": "RUN_ERROR", "message": "Too long.", "code": "failed"}
    assert translated == read(snapshot_of(["a"], status=Status.FAILED, error="Too long."))
    translated = read(snapshot_of(["a"]), event_of({"type": "reasoning", "text": "b"}), events.start(2))
    assert types(translated[-3:-1]) == ["REASONING_MESSAGE_END", "REASONING_END"]
    assert translated[-1] == {"type": "RUN_ERROR", "message": BEGUN_ANEW, "code": "interrupted"}


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({}, None),
        ({"output_tokens": True, "input_tokens": -1}, None),
        ({"input_tokens": 2**53}, None),
        (
            {"prompt_tokens": 2, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 1}},
            {"inputTokens": 2, "outputTokens": 3, "reasoningTokens": 1, "totalTokens": 5},
        ),
        (
            {"input_tokens": 2, "output_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 5},
            {"inputTokens": 11, "outputTokens": 3, "cachedInputTokens": 4, "cacheWriteInputTokens": 5}
            | {"totalTokens": 14},
        ),
        ({"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}}, {"inputTokens": 9, "cachedInputTokens": 4}),
    ],
)
def test_usage(usage: dict[str, Any], counts: dict[str, int] | None) -> None:
    finished = read(snapshot_of([], status=Status.COMPLETED, usage=usage))[-1]
    assert finished.get("usage") == (None if counts is None else [counts])


def message_texts(messages: Sequence[dict[str, Any]], role: str) -> str:
    return "".join(message.get("content", "") for message in messages if message["role"] == role)


def split(items: list[Item], data: st.DataObject) -> list[list[dict[str, Any]]]:
    """Return the responses to a client that starts a run, and then loses its connection several times."""
    responses: list[list[dict[str, Any]]] = []
    messages: list[dict[str, Any]] = BEFORE
    for number in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(items))) if number else 0
        following = data.draw(st.integers(position, len(items)))
        given = [snapshot_of(items[:position]), *map(event_of, items[position:following])]
        responses.append(read(*given, messages=messages if number else None))
        messages = build_messages(responses[-1], messages)
    responses.append(read(snapshot_of(items), COMPLETE, messages=messages))
    return responses


@given(ITEMS, st.data())
def test_every_split_into_snapshots_and_events_gives_the_same_messages(items: list[Item], data: st.DataObject) -> None:
    whole = build_messages(read(snapshot_of([]), *map(event_of, items), COMPLETE), BEFORE)
    content = snapshot_of(items)
    assert message_texts(whole[len(BEFORE) :], "assistant") == content["content"]
    position = data.draw(st.integers(0, len(items)))
    late = read(snapshot_of(items[:position]), *map(event_of, items[position:]), COMPLETE, messages=BEFORE)
    assert build_messages(late, BEFORE) == whole
    messages: list[dict[str, Any]] = BEFORE
    for response in split(items, data):
        messages = build_messages(response, messages)
    assert messages == whole


@given(ITEMS, st.data())
def test_snapshots_in_the_middle(items: list[Item], data: st.DataObject) -> None:
    whole = build_messages(read(snapshot_of([]), *map(event_of, items), COMPLETE))
    given = split_by_snapshots(items, data)
    assert build_messages(read(*given, COMPLETE)) == whole
    assert build_messages(read(*given, COMPLETE, messages=[])) == whole


@pytest.mark.node
def test_the_client_builds_the_same_messages() -> None:
    node = require_node()
    node_modules()
    given_: list[dict[str, Any]] = []
    expected: list[list[dict[str, Any]]] = []

    @given(ITEMS, st.data())
    def collect(items: list[Item], data: st.DataObject) -> None:
        given_.append({"messages": BEFORE, "responses": split(items, data)})
        expected.append(build_messages(read(snapshot_of([]), *map(event_of, items), COMPLETE), BEFORE))

    collect()
    done = subprocess.run(
        [node, "read_ag_ui.mjs"], input=json.dumps(given_).encode(), capture_output=True, cwd=FOLDER, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()[:2000]
    read_ = json.loads(done.stdout)
    assert [each["messages"] for each in read_["built"]] == expected
    for each, whole in zip(read_["built"], given_, strict=True):
        last = [event["metadata"]["id"] for event in whole["responses"][-1] if event["type"] == "CUSTOM"]
        assert sorted(set(each["custom"])) == sorted(last)
    assert read_["warnings"] == []
