"""Runs are written with the official clients of language models, against a server that speaks their format."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
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
from tests.support.model_server import (
    EVENTS,
    USAGE,
    Event,
    ModelHandler,
    ModelServer,
    close,
    cut,
    hold,
    reset,
    up_to_hel,
)
from tests.support.thread_server import serving

pytestmark = pytest.mark.django_db(transaction=True)

#: How long, in seconds, the clients wait for the next bytes, in the tests of time-outs.
TIMEOUT: Final = 5.0


@pytest.fixture(autouse=True)
def _engine(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}


@pytest.fixture
def run() -> Run:
    return Run.objects.start()


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serving(ModelServer()) as server:
        yield server


# -- the clients -------------------------------------------------------------------------------------------------------

QUESTION: Final = "Where?"


@contextmanager
def stream(api: str, url: str, seconds: float) -> Iterator[Iterator[Any]]:
    """Send a question to a model over one of the APIs, with the sync client."""
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
    """Send a question to a model over one of the APIs, with the client's helper for streams."""
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
    """Send a question to a model over one of the APIs, with the async client."""
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


# -- tests -------------------------------------------------------------------------------------------------------------


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
        # The client library raises its own exception.
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
    """The client libraries do not notice that the answer is incomplete."""
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
    """If the run was stopped, an answer without its end is not an error."""
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
    """Wait until the first text of a run has been broadcast, and stop the run."""
    deadline = time.monotonic() + 60
    while not any(event["event"] == "chunk" for event in sent(run)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    Run.objects.get(pk=run.pk).stop()
    connection.close()
