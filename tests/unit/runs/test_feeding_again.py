"""A task that feeds a second answer before the first one has ended."""

from __future__ import annotations

from typing import Any

import pytest

from reliable_cable.runs.exceptions import RunFailed
from reliable_cable.runs.feeding import Feeder
from tests.unit.runs.model_events import (
    COMPLETED,
    CREATED,
    MESSAGE_STOP,
    Output,
    block_delta,
    chunk,
    feed,
    message_delta,
    message_start,
    response_event,
)


def text_delta(text: str) -> Any:
    return response_event("response.output_text.delta", delta=text)


BEGUN_AGAIN = [
    ([CREATED, text_delta("a")], [CREATED, text_delta("ab"), COMPLETED]),
    ([chunk({"content": "a"})], [chunk({"role": "assistant", "content": "ab"}, "stop", chat="chat_2")]),
    (
        [message_start(), block_delta("text_delta", text="a")],
        [message_start(), block_delta("text_delta", text="ab"), message_delta("end_turn"), MESSAGE_STOP],
    ),
]


@pytest.mark.parametrize(("first", "second"), BEGUN_AGAIN, ids=["responses", "chat", "messages"])
def test_an_answer_that_is_begun_again_in_the_middle_fails(first: list[Any], second: list[Any]) -> None:
    out = Output()
    feeder = Feeder(out)
    for event in first:
        feeder.feed(event)
    with pytest.raises(RunFailed, match="interrupted") as caught:
        feeder.feed(second[0])
    assert "before the previous one was fed to its end" in caught.value.__notes__[0]
    assert out.written == ["a"]


@pytest.mark.parametrize(("first", "second"), BEGUN_AGAIN, ids=["responses", "chat", "messages"])
def test_an_answer_may_be_begun_again_before_its_first_text(first: list[Any], second: list[Any]) -> None:
    begin = [chunk({"role": "assistant", "content": ""})] if len(first) == 1 else first[:1]
    assert feed([*begin, *second]).written == ["ab"]


def test_chunks_with_different_ids_are_one_answer() -> None:
    chunks = [chunk({"role": "assistant", "content": "a"}), chunk({"content": "b"}, "stop", chat="chat_2")]
    assert feed(chunks).written == ["a", "b"]
