"""The blocks of docs/llm.md run."""

from __future__ import annotations

import json
import re
import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import RequestFactory

from reliable_cable.runs import events
from reliable_cable.runs.access import RunPermissions
from reliable_cable.runs.models import Run, Status
from tests.unit.test_authentication_page import names_in, python_block
from tests.unit.test_docs import PAGES

PAGE = "llm.md"


@pytest.mark.django_db(transaction=True)
def test_a_view_starts_a_run_that_a_task_writes(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}
    tasks = names_in(python_block(PAGE, "# tasks.py"), __name__="app.tasks")

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

    def in_thread(run: str) -> None:
        thread = threading.Thread(target=tasks["answer"], args=(run,))
        thread.start()
        thread.join()

    monkeypatch.setattr(tasks["answer"], "delay", in_thread)
    view = names_in(python_block(PAGE, "# views.py"), __name__="app.views", __package__="app")
    request = RequestFactory().post("/", {"prompt": "why?"})
    request.user = owner = User.objects.create(username="ann")
    run = Run.objects.get(pk=json.loads(view["ask"](request).content)["run"])
    assert (run.status, run.text, run.owner) == (Status.COMPLETED, "You asked: why?", owner)


def test_the_permissions() -> None:
    permissions = names_in(python_block(PAGE, "# access.py"))["TeamPermissions"]()
    assert isinstance(permissions, RunPermissions)
    run = Run(owner_id=1)
    assert permissions.may_read(User(pk=2, is_staff=True), run)
    assert not permissions.may_read(User(pk=2), run)
    assert not permissions.may_read(None, run)


def test_the_page_lists_every_event() -> None:
    """The scenarios in tests/node/runs.mjs run the block in JavaScript."""
    rows = [line.split("|")[1] for line in PAGES[PAGE].splitlines() if line.startswith("| `")]
    names = {events.SNAPSHOT, events.START, events.CHUNK, events.PART, events.COMPLETE, events.STOPPED, events.ERROR}
    assert names <= set(re.findall(r"`(\w+)`", " ".join(rows)))
