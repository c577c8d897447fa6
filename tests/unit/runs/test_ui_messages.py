"""`UiMessages` translates the events of a run to chunks of the AI SDK."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.runs import events
from reliable_cable.runs.http.streaming import encode
from reliable_cable.runs.http.translating import BEGUN_ANEW
from reliable_cable.runs.http.ui_messages import UiMessages, build_message, ui_message
from reliable_cable.runs.models import Run, Status
from reliable_cable.runs.parts import Content
from tests.node import FOLDER, node_modules, require_node

Item = str | dict[str, Any]

CALL: dict[str, Any] = {"type": "tool-call", "id": "c1", "name": "weather", "input": {"city": "Bern"}}
RESULT: dict[str, Any] = {"type": "tool-result", "id": "c1", "output": {"celsius": 20}}


def event_of(item: Item, attempt: int = 1) -> dict[str, Any]:
    return events.chunk(attempt, item) if isinstance(item, str) else events.part(attempt, item)


def snapshot_of(items: Sequence[Item], attempt: int = 1, status: str = Status.RUNNING, **values: Any) -> dict[str, Any]:
    content = Content()
    for item in items:
        content.add(item)
    run = Run(attempt=attempt, status=status, text=content.text, parts=content.parts, **values)
    return run.snapshot()


COMPLETE = {"event": events.COMPLETE, "attempt": 1, "usage": {"output_tokens": 3}}


def chunks_of(*given: dict[str, Any]) -> list[dict[str, Any]]:
    translator = UiMessages("r")
    chunks = list(translator.start())
    for event in given:
        chunks += translator.translate(event)
    return chunks


def types(chunks: Sequence[dict[str, Any]]) -> list[str]:
    return [chunk["type"] for chunk in chunks]


def test_a_text() -> None:
    chunks = chunks_of(snapshot_of([]), events.start(1), event_of("Hel"), event_of(""), event_of("lo"), COMPLETE)
    assert chunks == [
        {"type": "start", "messageId": "r"},
        {"type": "start-step"},
        {"type": "text-start", "id": "text-1"},
        {"type": "text-delta", "id": "text-1", "delta": "Hel"},
        {"type": "text-delta", "id": "text-1", "delta": "lo"},
        {"type": "text-end", "id": "text-1"},
        {"type": "finish-step"},
        {
            "type": "finish",
            "finishReason": "stop",
            "messageMetadata": {"status": "completed", "usage": {"output_tokens": 3}},
        },
    ]


def test_a_late_reader_gets_the_text_so_far_in_one_delta() -> None:
    chunks = chunks_of(snapshot_of(["Hel", "lo"]), event_of(", you"), COMPLETE)
    deltas = [(chunk["id"], chunk["delta"]) for chunk in chunks if chunk["type"] == "text-delta"]
    assert deltas == [("text-1", "Hello"), ("text-1", ", you")]


def test_all_types_of_parts() -> None:
    items: list[Item] = [
        {"type": "reasoning", "text": "Hm"},
        {"type": "reasoning", "text": "m"},
        "Let me look. ",
        CALL,
        {**CALL, "id": "c2", "dynamic": True},
        RESULT,
        {"type": "tool-result", "id": "c2", "output": None},
        "It is warm.",
        {"type": "source", "url": "https://example.com/", "title": "Example"},
        {"type": "source", "url": "https://example.org/", "title": ""},
        {"type": "data", "name": "chart", "data": [1]},
        {"type": "data", "name": "chart", "data": [2], "id": "main"},
        {"type": "data", "name": "chart", "data": [3], "id": "main"},
    ]
    tool = {"toolCallId": "c1", "input": {"city": "Bern"}, "providerExecuted": True, "state": "output-available"}
    expected = [
        {"type": "step-start"},
        {"type": "reasoning", "text": "Hmm", "state": "done"},
        {"type": "text", "text": "Let me look. ", "state": "done"},
        {"type": "tool-weather", **tool, "output": {"celsius": 20}},
        {"type": "dynamic-tool", "toolName": "weather", **tool, "toolCallId": "c2", "output": None},
        {"type": "step-start"},
        {"type": "text", "text": "It is warm.", "state": "done"},
        {"type": "source-url", "sourceId": "source-1", "url": "https://example.com/", "title": "Example"},
        {"type": "source-url", "sourceId": "source-2", "url": "https://example.org/"},
        {"type": "data-chart", "data": [1]},
        {"type": "data-chart", "id": "main", "data": [3]},
    ]
    chunks = chunks_of(snapshot_of([]), *map(event_of, items), COMPLETE)
    assert build_message(chunks)["parts"] == expected
    content = snapshot_of(items, status=Status.COMPLETED)
    run = Run(status=Status.COMPLETED, text=content["content"], parts=content["parts"], usage={"output_tokens": 3})
    assert ui_message(run) == {
        "id": str(run.pk),
        "role": "assistant",
        "metadata": {"status": "completed", "usage": {"output_tokens": 3}},
        "parts": expected,
    }


@pytest.mark.parametrize(
    "part",
    [
        {"type": "future", "text": "?"},
        {"type": "tool-call", "name": "without id"},
        {"type": "tool-call", "id": 1, "name": "a number"},
        {"type": "tool-result", "id": "unknown", "output": 1},
        {"type": "source", "title": "without URL"},
        {"type": "data", "data": "without name"},
        {"type": "data", "name": "", "data": "without name"},
    ],
)
def test_parts_that_clients_do_not_know_are_skipped(part: dict[str, Any]) -> None:
    chunks = chunks_of(snapshot_of([]), event_of("a"), event_of(part), event_of("b"), COMPLETE)
    assert build_message(chunks)["parts"][1:] == [{"type": "text", "text": "ab", "state": "done"}]


def test_a_stopped_run_keeps_its_content() -> None:
    stopped = {"event": events.STOPPED, "attempt": 1, "usage": {}}
    chunks = chunks_of(snapshot_of(["a"]), stopped, event_of("late"))
    assert types(chunks)[-4:] == ["text-end", "finish-step", "abort", "finish"]
    assert chunks[-1] == {"type": "finish", "finishReason": "other", "messageMetadata": {"status": "stopped"}}
    assert chunks == chunks_of(snapshot_of(["a"], status=Status.STOPPED))


def test_a_failed_run_ends_with_its_error() -> None:
    failed = {"event": events.ERROR, "attempt": 1, "message": "Too long."}
    chunks = chunks_of(snapshot_of(["a"]), failed)
    assert chunks[-2:] == [{"type": "text-end", "id": "text-1"}, {"type": "error", "errorText": "Too long."}]
    assert build_message(chunks)["metadata"] == {"status": "failed"}
    assert chunks == chunks_of(snapshot_of(["a"], status=Status.FAILED, error="Too long."))


def test_another_attempt() -> None:
    # Nothing of the first attempt was sent, so the second attempt takes its place.
    assert build_message(chunks_of(snapshot_of([]), events.start(2), event_of("b", 2)))["parts"][1]["text"] == "b"
    for event in (events.start(2), event_of("b", 2), snapshot_of(["b"], 2)):
        assert chunks_of(snapshot_of(["a"]), event)[-1] == {"type": "error", "errorText": BEGUN_ANEW}
    # Events of a former attempt are ignored.
    assert types(chunks_of(snapshot_of(["b"], 2), event_of("a"), COMPLETE))[-1] == "text-delta"


def test_a_later_snapshot_that_contradicts_the_content_ends_the_stream() -> None:
    other = {**CALL, "id": "c2"}
    contradictions: list[list[Item]] = [["b"], ["", CALL, "a"], ["a", RESULT, CALL], ["a", other], [CALL, "a", CALL]]
    for items in contradictions:
        chunks = chunks_of(snapshot_of(["a", CALL]), snapshot_of(items))
        assert chunks[-1] == {"type": "error", "errorText": BEGUN_ANEW}


def test_sources_and_text_are_encoded_as_events() -> None:
    assert encode([{"a": "ü\n"}, {}]) == 'data: {"a":"ü\\n"}\n\ndata: {}\n\n'.encode()


REASONING = st.builds(lambda text: {"type": "reasoning", "text": text}, st.text("xy", max_size=3))
CALLS = st.builds(lambda id_: {**CALL, "id": id_}, st.sampled_from(["c1", "c2"]))
RESULTS = st.builds(lambda id_: {**RESULT, "id": id_}, st.sampled_from(["c1", "c2", "c3"]))
OTHERS = st.sampled_from(
    [
        {"type": "source", "url": "https://example.com/", "title": "Example"},
        {"type": "data", "name": "chart", "data": 1},
        {"type": "data", "name": "chart", "data": 2, "id": "main"},
        {"type": "unknown"},
    ]
)
ITEMS = st.lists(st.text("ab", max_size=3) | REASONING | CALLS | RESULTS | OTHERS, max_size=12)


def split_by_snapshots(items: Sequence[Item], data: st.DataObject) -> list[dict[str, Any]]:
    """Return the events of a run with snapshots in the middle.

    A snapshot may be older or newer than the events before it. The events after it begin at its position.
    """
    given: list[dict[str, Any]] = []
    position = 0
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(items)))
        given.append(snapshot_of(items[:position]))
        following = data.draw(st.integers(position, len(items)))
        given += map(event_of, items[position:following])
        position = following
    return [*given, *map(event_of, items[position:])]


@given(ITEMS, st.data())
def test_every_split_into_snapshots_and_events_gives_the_same_message(items: list[Item], data: st.DataObject) -> None:
    whole = build_message(chunks_of(snapshot_of([]), *map(event_of, items), COMPLETE))
    assert build_message(chunks_of(*split_by_snapshots(items, data), COMPLETE)) == whole
    assert build_message(chunks_of(snapshot_of(items, status=Status.COMPLETED, usage=COMPLETE["usage"]))) == whole


def test_a_later_snapshot_continues_the_content() -> None:
    reasoning = {"type": "reasoning", "text": "Hm"}
    chunks = chunks_of(snapshot_of([reasoning]), snapshot_of([reasoning, {**reasoning, "text": "m"}, "a", CALL]))
    assert types(chunks)[2:] == [
        *["reasoning-start", "reasoning-delta", "reasoning-delta", "reasoning-end"],
        *["text-start", "text-delta", "text-end", "tool-input-available"],
    ]


def test_a_second_call_with_the_same_id() -> None:
    second = {**CALL, "input": {"city": "Thun"}}
    parts = build_message(chunks_of(snapshot_of([CALL, second]), COMPLETE))["parts"]
    assert [part.get("input") for part in parts] == [None, {"city": "Thun"}]
    parts = build_message(chunks_of(snapshot_of([CALL, RESULT, second]), COMPLETE))["parts"]
    assert [part.get("input") for part in parts] == [None, {"city": "Bern"}, None, {"city": "Thun"}]


@pytest.mark.node
def test_the_ai_sdk_builds_the_same_messages() -> None:
    node = require_node()
    node_modules()
    streams: list[list[dict[str, Any]]] = []

    @given(ITEMS, st.integers(0, 12))
    def collect(items: list[Item], split: int) -> None:
        streams.append(chunks_of(snapshot_of(items[:split]), *map(event_of, items[split:]), COMPLETE))

    collect()
    done = subprocess.run(
        [node, "read_ui_messages.mjs"], input=json.dumps(streams).encode(), capture_output=True, cwd=FOLDER, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()[:2000]
    for built, chunks in zip(json.loads(done.stdout), streams, strict=True):
        for part in built["parts"]:
            if part["type"] == "reasoning":
                part.pop("id", None)  # `build_message` gives reasoning no ids
        assert built == build_message(chunks)


@given(ITEMS, st.integers(0, 12))
def test_chunks_are_in_order(items: list[Item], split: int) -> None:
    chunks = chunks_of(snapshot_of(items[:split]), *map(event_of, items[split:]), COMPLETE)
    open_: str | None = None
    calls: set[str] = set()
    for chunk in chunks:
        kind, _, stage = chunk["type"].partition("-")
        if kind in ("text", "reasoning"):
            assert open_ == (None if stage == "start" else chunk["id"])
            open_ = None if stage == "end" else chunk["id"]
            continue
        assert open_ is None
        if chunk["type"] == "tool-input-available":
            calls.add(chunk["toolCallId"])
        elif chunk["type"] == "tool-output-available":
            assert chunk["toolCallId"] in calls
    steps = [type_ for type_ in types(chunks) if type_.endswith("-step")]
    assert steps == ["start-step", "finish-step"] * (len(steps) // 2)
