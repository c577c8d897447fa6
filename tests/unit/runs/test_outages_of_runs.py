"""Runs whose writer dies, or whose database or store fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from django.db import OperationalError

from reliable_cable.broadcasting import broadcast_batch
from reliable_cable.exceptions import BroadcastUncertain
from reliable_cable.runs import attempt
from reliable_cable.runs.attempt import Attempt
from reliable_cable.runs.models import Run, Status
from reliable_cable.runs.writing import writing
from tests.unit.runs.test_writing import expire, sent, text_of, wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("each_engine")]


@pytest.fixture
def run() -> Run:
    return Run.objects.start()


class _Failing:
    """Takes the place of a function. The first calls fail, before or after they call the function."""

    def __init__(self, function: Callable[..., Any], *errors: Exception, after: bool = False) -> None:
        self._function = function
        self._errors = list(errors)
        self._after = after
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        result = self._function(*args, **kwargs) if self._after or not self._errors else None
        if self._errors:
            raise self._errors.pop(0)
        return result


@pytest.mark.parametrize("after", [False, True], ids=["not stored", "stored"])
def test_events_whose_broadcast_is_uncertain_are_broadcast_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    failing = _Failing(broadcast_batch, BroadcastUncertain("no response"), after=after)
    with writing(run.pk) as out:
        monkeypatch.setattr(attempt, "broadcast_batch", failing)
        out.write("Hello")
        wait_until(lambda: failing.calls == 2)
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.COMPLETED, "Hello")
    assert text_of(sent(run)) == "Hello"


@pytest.mark.parametrize("after", [False, True], ids=["not stored", "stored"])
def test_an_outage_at_the_start_does_not_fail_a_run(run: Run, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    failing = _Failing(broadcast_batch, BroadcastUncertain("no response"), after=after)
    monkeypatch.setattr(attempt, "broadcast_batch", failing)
    with writing(run.pk) as out:
        out.write("Hello")
    assert [event["event"] for event in sent(run)] == ["start", "chunk", "complete"]
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.COMPLETED, "Hello")


@pytest.mark.parametrize("after", [False, True], ids=["not changed", "changed"])
@pytest.mark.parametrize("function", ["position", "lease", "Run.objects.with_id"])
def test_a_task_waits_for_a_database_that_is_away_at_the_start(
    run: Run, monkeypatch: pytest.MonkeyPatch, after: bool, function: str
) -> None:
    monkeypatch.setattr(attempt, "RETRY_DELAY", 0.01)
    error = OperationalError("the database is away")
    if function == "Run.objects.with_id":
        failing = _Failing(Run.objects.with_id, error, after=after)
        monkeypatch.setattr(type(Run.objects), "with_id", lambda self, run: failing(run))
    else:
        failing = _Failing(getattr(attempt, function), error, after=after)
        monkeypatch.setattr(attempt, function, failing)
    with writing(run.pk) as out:
        out.write("Hello")
    assert failing.calls >= 2
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.COMPLETED, "Hello")


def test_a_task_begins_a_run_whose_update_got_no_response(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "RETRY_DELAY", 0.01)
    failing = _Failing(Run.refresh_from_db, OperationalError("the connection was lost"))
    monkeypatch.setattr(Run, "refresh_from_db", lambda self: failing(self))
    with writing(run.pk) as out:
        out.write("Hello")
    assert failing.calls > 2
    monkeypatch.undo()
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.COMPLETED, "Hello")


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_run_whose_writer_died_has_what_was_broadcast_to_a_stream_with_a_short_history(
    run: Run, settings: Any, size: int
) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "STREAMS": {"run:*": {"history_size": size}}}
    attempt = Attempt(run)
    attempt.begin()
    for number in range(10):
        # These three items are broadcast together.
        for item in (f"a{number}", {"type": "data", "name": "b", "data": number}, f"c{number}"):
            attempt.coalescer.add(item)
        attempt._flush()
    expire(run)
    assert Run.objects.expire() == [run]
    run.refresh_from_db()
    assert run.text == "".join(f"a{number}c{number}" for number in range(10))
    assert [part["data"] for part in run.parts] == [*range(10)]


def test_an_outage_of_the_database_delays_events_that_the_history_would_lose(
    run: Run, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "STREAMS": {"run:*": {"history_size": 4}}}
    attempt = Attempt(run)
    attempt.begin()
    with monkeypatch.context() as broken:
        broken.setattr(attempt, "_own", _Failing(attempt._own, OperationalError("away"), OperationalError("away")))
        for text in ("a", "b", "c"):
            attempt.coalescer.add(text)
            with suppress(OperationalError):
                attempt._flush()
        assert len(sent(run)) <= 4
        attempt._flush()
    assert text_of(sent(run)) == "abc"[-len(text_of(sent(run))) :]
    attempt.end(Status.COMPLETED)
    run.refresh_from_db()
    assert run.text == "abc"


def test_a_run_has_what_a_frozen_writer_broadcast_before_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = Attempt(run)
    frozen.begin()

    def broadcast_late(item: Any) -> None:
        frozen.coalescer.add(item)
        frozen._flush()

    broadcast_late("a")
    expire(run)
    announce_end = Run.announce_end

    def announce_late(run: Run) -> None:
        broadcast_late("b")
        broadcast_late({"type": "data", "name": "c", "data": 1})
        announce_end(run)
        broadcast_late("after the end")

    monkeypatch.setattr(Run, "announce_end", announce_late)
    (failed,) = Run.objects.expire()
    part = {"type": "data", "name": "c", "data": 1, "at": 2}
    assert (failed.text, failed.parts) == ("ab", [part])
    run.refresh_from_db()
    assert (run.status, run.text, run.parts) == (Status.FAILED, "ab", [part])


def test_a_text_that_is_larger_than_a_broadcast_is_split(run: Run) -> None:
    text = "\U0001f600\x01" * 100_000
    with writing(run.pk) as out:
        out.write(text)
        out.reason(text)
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.COMPLETED, text)
    assert [part["text"] for part in run.parts] == [text]
    assert text_of(sent(run)) == text


def test_the_largest_part_can_be_broadcast(run: Run) -> None:
    with writing(run.pk) as out:
        for size in range(256 * 1024 - 160, 256 * 1024, 20):
            with suppress(ValueError):
                out.data("x", "y" * size)
                largest = size
    run.refresh_from_db()
    assert run.status == Status.COMPLETED
    assert len(run.parts[-1]["data"]) == largest
