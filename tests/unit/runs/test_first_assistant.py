"""The steps of docs/llm.md, taken in an empty folder, create an assistant, and then a page for `useChat`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.support.projects import own_environment
from tests.unit.test_docs import BLOCKS, PAGES, ROOT

PAGE = "llm.md"
#: The path of a file, in the comment at the beginning of a block.
PATH = re.compile(r"(?:#|//|<!--) ([\w./]+)( \(add at the end\))?(?: -->)?\n")
TAG = '{{ chat|json_script:"chat" }}'

#: A script that asks a question as a browser does, waits for the answer, and renders a conversation.
SCRIPT = """
import json, time
from unittest import mock
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client, RequestFactory

for command in (["makemigrations", "assistant"], ["migrate"], ["check"]):
    call_command(*command, verbosity=0)

from assistant import chats, pages
from assistant.models import Conversation
from reliable_cable.runs.chats import ChatMessage
from reliable_cable.runs.models import Run

user = User.objects.create_superuser("ann")
client = Client(SERVER_NAME="localhost")
client.force_login(user)
empty = client.get("/").content.decode()
assert client.post("/", {"prompt": "why?"}).url == "/"
run = Run.objects.get()
page = client.get("/").content.decode()
while not run.ended:
    time.sleep(0.01)
    run.refresh_from_db()

subject = Conversation.objects.create(owner=user)
with mock.patch.object(chats.answer, "delay", create=True) as delay:
    chats.Chats().start(user, chats.Chats().subject(user, str(subject.pk)), ChatMessage("m", "user", "how?"))
assert delay.called
request = RequestFactory().get("/")
request.user = user
conversation = pages.conversation(request, subject.pk)
assert "csrftoken" in conversation.cookies
print(json.dumps([empty, page, run.status, run.text, str(run.pk), conversation.content.decode()]))
"""


def run(folder: Path, *words: str) -> str:
    """Run Python in a folder, and return what it prints."""
    environment = own_environment({"PYTHONPATH": str(ROOT)})
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(file: Path, text: str, *, add: bool = False) -> None:
    """Write a file, or add to it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text((file.read_text() if add else "") + text)


def test_a_first_assistant(tmp_path: Path) -> None:
    blocks = [block.text for block in BLOCKS if block.page == PAGE]
    (setup,) = [text for text in blocks if "startproject" in text]
    run(tmp_path, "-m", "django", "startproject", "mysite", ".")
    (line,) = [line for line in setup.splitlines() if line.startswith("python -m reliable_cable.setup")]
    run(tmp_path, *line.split()[1:])
    write(tmp_path / "assistant" / "__init__.py", "")
    for text in blocks:
        match = PATH.match(text)
        if match and "/" in match[1]:
            write(tmp_path / match[1], f"{text}\n", add=bool(match[2]))
        elif match and match[1] in ("models.py", "chats.py", "pages.py"):
            write(tmp_path / "assistant" / match[1], f"{text}\n")
    (script,) = [text for text in blocks if "AnyCable.followRun" in text]
    write(tmp_path / "assistant" / "static" / "assistant.js", script)
    write(tmp_path / "assistant" / "tasks.py", "\nsleep = lambda seconds: None\n", add=True)
    (setting,) = [text for text in blocks if "RUN_CHATS" in text]
    write(tmp_path / "mysite" / "settings.py", f"{setting}\n", add=True)
    assert f"`{TAG}`" in PAGES[PAGE]
    write(tmp_path / "assistant" / "templates" / "conversation.html", TAG)

    empty, page, status, text, pk, conversation = json.loads(run(tmp_path, "manage.py", "shell", "-v0", "-c", SCRIPT))
    assert "data-run" not in empty
    assert f'data-run="{pk}"' in page
    assert '"/static/assistant.js"' in page
    assert (status, text) == ("completed", "You asked: why? ")
    (found,) = re.findall(r'<script id="chat" type="application/json">(.*)</script>', conversation)
    question, answer = json.loads(found)["messages"]
    assert (question["parts"][0]["text"], answer["parts"]) == ("how?", [{"type": "step-start"}])
    assert "metadata" not in answer
