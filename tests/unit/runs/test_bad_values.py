"""What a task may not write, and what is replaced because it cannot be stored."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User

from reliable_cable.runs.exceptions import RunFailed
from reliable_cable.runs.models import Run, Status
from reliable_cable.runs.writing import writing
from tests.unit.runs.test_writing import owner, run, sent, text_of

__all__ = ["owner", "run"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("each_engine")]


@pytest.mark.parametrize("text", ["\x00", "\ud800", "a\udfffb"])
def test_text_that_cannot_be_stored_is_replaced(run: Run, text: str) -> None:
    with writing(run.pk) as out:
        out.write(text)
        out.data("x", {text: text})
    run.refresh_from_db()
    assert "\ufffd" in run.text
    assert text_of(sent(run)) == run.text


@pytest.mark.parametrize(
    "part", [{}, {"type": ""}, {"type": "data", "data": object()}, {"type": "x", "y": float("nan")}]
)
def test_a_part_that_is_not_json_is_refused_at_once(run: Run, part: Any) -> None:
    with writing(run.pk) as out, pytest.raises((TypeError, ValueError)):
        out.part(part)
    run.refresh_from_db()
    assert run.status == Status.COMPLETED


@pytest.mark.parametrize("method", ["write", "reason"])
def test_anything_but_text_is_refused_at_once(run: Run, method: str) -> None:
    with writing(run.pk) as out, pytest.raises(TypeError, match=rf"{method}\(\) takes a str, not int"):
        getattr(out, method)(1)


@pytest.mark.parametrize("text", ["bad \x00", "bad \ud800"])
def test_input_errors_and_usage_that_cannot_be_stored_are_cleaned(owner: User, text: str) -> None:
    run = Run.objects.start(owner=owner, input={text: [text]})
    clean = "bad \ufffd"
    assert Run.objects.get(pk=run.pk).input == {clean: [clean]}

    def write() -> None:
        with writing(run.pk) as out:
            out.count({text: text})
            raise RunFailed(text)

    with pytest.raises(RunFailed):
        write()
    run.refresh_from_db()
    assert (run.status, run.error, run.usage) == (Status.FAILED, clean, {clean: clean})


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_input_and_usage_are_json_values(run: Run, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        Run.objects.start(input={"prompt": value})
    with writing(run.pk) as out, pytest.raises((TypeError, ValueError)):
        out.count({"cost": value})
    run.refresh_from_db()
    assert (run.status, run.usage) == (Status.COMPLETED, {})


def test_a_message_about_a_bad_part_does_not_contain_it(run: Run) -> None:
    with writing(run.pk) as out, pytest.raises(TypeError) as raised:
        out.part({"text": "secret"})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("pk", ["nope", "6c1f0e5e-3b8f-4f5e-9f0e-0d7c5c0b7f11"])
def test_an_unknown_run_does_not_exist(pk: str) -> None:
    with pytest.raises(Run.DoesNotExist):
        Run.objects.retry(pk)
    with pytest.raises(Run.DoesNotExist), writing(pk):
        pytest.fail("There is nothing to write.")
