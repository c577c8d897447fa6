"""The Python blocks of docs/llm.md can be executed, and the page lists every event."""

from __future__ import annotations

import json
import re
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import celery
import pytest
from django.contrib.auth.models import Group, User
from django.db import connections
from django.test import AsyncClient, RequestFactory

from reliable_cable.runs import events
from reliable_cable.runs.access import RunPermissions
from reliable_cable.runs.models import Run, Status
from tests.support.model_server import ModelServer
from tests.support.thread_server import serving
from tests.unit.runs import chat_client
from tests.unit.runs.model_events import response
from tests.unit.test_authentication_page import names_in, python_block
from tests.unit.test_docs import BLOCKS, PAGES

PAGE = "llm.md"


@pytest.mark.django_db(transaction=True)
def test_a_view_starts_a_run_that_a_task_writes(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}
    tasks = names_in(python_block(PAGE, "# tasks.py\n"), __name__="app.tasks")

    class Client:
        """Takes the place of `OpenAI`, whose server is not available. test_model_clients.py uses the real client."""

        class responses:  # noqa: N801 - as in the package
            @staticmethod
            def create(*, model: str, input: str, stream: bool) -> list[str]:  # noqa: A002 - as in the package
                assert stream
                return ["You asked: ", input]

    tasks["OpenAI"] = Client
    app = ModuleType("app")
    module = ModuleType("app.tasks")
    module.answer = tasks["answer"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "app", app)
    monkeypatch.setitem(sys.modules, "app.tasks", module)

    def work(run: str) -> None:
        try:
            tasks["answer"](run)
        finally:
            connections.close_all()

    def in_thread(run: str) -> None:
        thread = threading.Thread(target=work, args=(run,))
        thread.start()
        thread.join()

    monkeypatch.setattr(tasks["answer"], "delay", in_thread)
    view = names_in(python_block(PAGE, "# views.py"), __name__="app.views", __package__="app")
    request = RequestFactory().post("/", {"prompt": "why?"})
    request.user = owner = User.objects.create(username="ann")
    run = Run.objects.get(pk=json.loads(view["ask"](request).content)["run"])
    assert (run.status, run.text, run.owner) == (Status.COMPLETED, "You asked: why?", owner)


@pytest.mark.django_db(transaction=True)
def test_a_task_calls_tools(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}
    code = python_block(PAGE, "# tasks.py\n") + python_block(PAGE, "# tasks.py (add at the end)\n")
    monkeypatch.setattr(celery, "shared_task", lambda function: function)  # the apps of other tests lack the task
    tasks = names_in(code, __name__="app.tasks")
    call = {"type": "function_call", "id": "i", "call_id": "c", "name": "weather", "arguments": '{"city": "Bonn"}'}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": []}
    run = Run.objects.start(input={"prompt": "Is it warm in Bonn?"})
    with serving(ModelServer()) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        server.first = [
            [{"type": "response.output_item.done", "output_index": 0, "item": call}, completed(call)],
            [text_delta("Yes, 21 °C."), completed(message)],
        ]
        tasks["answer_with_tools"](str(run.pk))
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.COMPLETED, "Yes, 21 °C.")
    assert run.parts == [
        {"type": "tool-call", "id": "c", "name": "weather", "input": {"city": "Bonn"}, "at": 0},
        {"type": "tool-result", "id": "c", "output": {"city": "Bonn", "celsius": 21}, "at": 0},
    ]
    # The model is asked again with its call and the result.
    result = {"type": "function_call_output", "call_id": "c", "output": '{"city": "Bonn", "celsius": 21}'}
    assert [each["input"] for each in server.bodies] == [
        [{"role": "user", "content": "Is it warm in Bonn?"}],
        [{"role": "user", "content": "Is it warm in Bonn?"}, call, result],
    ]


def completed(item: dict[str, Any]) -> dict[str, Any]:
    """Return the last event of an answer of the Responses API that consists of one item."""
    return {"type": "response.completed", "response": response(status="completed", output=[item])}


def text_delta(text: str) -> dict[str, Any]:
    """Return an event of the Responses API that contains a piece of text."""
    return {
        "type": "response.output_text.delta",
        "item_id": "m",
        "output_index": 0,
        "content_index": 0,
        "delta": text,
        "logprobs": [],
    }


@pytest.mark.django_db(transaction=True)
async def test_a_chat_starts_a_run(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    user = await User.objects.acreate(username="ann")
    group = await Group.objects.acreate(name="chat")
    started: list[str] = []

    class Conversation:
        """Takes the place of a Django model of the project."""

        class objects:  # noqa: N801 - as in Django
            @staticmethod
            def get(*, pk: str, owner: User) -> Group:
                assert owner == user
                return Group.objects.get(pk=pk)

    def add_module(name: str, **names: Any) -> ModuleType:
        module = ModuleType(name)
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    add_module("assistant")
    add_module("assistant.models", Conversation=Conversation)
    add_module("assistant.tasks", answer=SimpleNamespace(delay=started.append))
    chats = names_in(python_block(PAGE, "# chats.py"), __name__="assistant.chats", __package__="assistant")
    add_module("assistant.chats", **chats)
    (text,) = (block.text for block in BLOCKS if block.page == PAGE and "RUN_CHATS" in block.text)
    settings.RELIABLE_CABLE = {"ENGINE": "memory", **names_in(text)["RELIABLE_CABLE"]}
    settings.ROOT_URLCONF = add_module("assistant.urls", **names_in(python_block(PAGE, "# urls.py")))
    client = AsyncClient()
    await client.aforce_login(user)
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "why?"}]}
    body = {"id": str(group.pk), "messages": [message]}
    response = await client.post("/runs/chat", body, content_type="application/json")
    assert response.status_code == 200
    run = await Run.objects.aget()
    assert (run.input, started) == ({"prompt": "why?"}, [str(run.pk)])
    for unknown in ("0", "x"):
        assert (await client.get(f"/runs/chat/{unknown}/stream")).status_code == 404


@pytest.mark.django_db(transaction=True)
async def test_the_rules_for_durable_streams(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = (block.text for block in BLOCKS if block.page == PAGE and "RUN_DURABLE_STREAMS" in block.text)
    module = ModuleType("shop.streams")
    vars(module).update(names_in(python_block(PAGE, "# streams.py"), __name__="shop.streams"))
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.streams", module)
    settings.RELIABLE_CABLE = names_in(text)["RELIABLE_CABLE"]
    settings.ROOT_URLCONF = chat_client.__name__
    user = await User.objects.acreate(username="ann")
    client = AsyncClient()
    await client.aforce_login(user)
    url = f"/runs/durable/{user.pk}/notes"
    assert (await client.put(url, "a", content_type="text/plain")).status_code == 201
    assert (await client.get(url)).content == b"a"
    assert (await client.put("/runs/durable/notes", "a", content_type="text/plain")).status_code == 404


def test_the_permissions() -> None:
    permissions = names_in(python_block(PAGE, "# access.py"))["TeamPermissions"]()
    assert isinstance(permissions, RunPermissions)
    run = Run(owner_id=1)
    assert permissions.may_read(User(pk=2, is_staff=True), run)
    assert not permissions.may_read(User(pk=2), run)
    assert not permissions.may_read(None, run)


def test_the_page_lists_every_event() -> None:
    """The page's JavaScript block is run by the scenarios in tests/node/runs.mjs."""
    rows = [line.split("|")[1] for line in PAGES[PAGE].splitlines() if line.startswith("| `")]
    names = {events.SNAPSHOT, events.START, events.CHUNK, events.PART, events.COMPLETE, events.STOPPED, events.ERROR}
    assert names <= set(re.findall(r"`(\w+)`", " ".join(rows)))
