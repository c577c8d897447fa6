"""The test kit in a project: with pytest and its plugin, and with Django's test runner."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.redis import RedisPool, find_binaries
from tests.support.server import ROOT

PROJECT = "tests/integration/kit_project"
#: The options name the plugin, because an editable install may be older than the plugin's entry point.
PYTEST = [
    *("-m", "pytest", "-c", os.devnull, "--rootdir", str(ROOT), "-W", "error", "-p", "no:cacheprovider"),
    *("-p", "no:reliable_cable", "-p", "reliable_cable.testing.pytest_plugin", "-o", "asyncio_mode=auto"),
    *("--noconftest", "-o", "asyncio_default_fixture_loop_scope=function"),
]
DJANGO = ["-W", "error", "-m", "django", "test", PROJECT, "--top-level-directory", ".", "--pattern", "check_django.py"]


#: The parts of a project that docs/testing.md leaves out: settings, models, the channel and imports.
PAGE_PROJECT = {
    "settings.py": """
        SECRET_KEY = "tests"
        INSTALLED_APPS = [
            "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "channels",
            "reliable_cable", "chat",
        ]
        ASGI_APPLICATION = "asgi.application"
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
    """,
    "asgi.py": """
        from channels.auth import AuthMiddlewareStack
        from channels.routing import ProtocolTypeRouter, URLRouter
        from django.core.asgi import get_asgi_application
        from django.urls import path
        from reliable_cable import CableConsumer

        application = ProtocolTypeRouter(
            {
                "http": get_asgi_application(),
                "websocket": AuthMiddlewareStack(URLRouter([path("cable", CableConsumer.as_asgi())])),
            }
        )
    """,
    "chat/__init__.py": "",
    "chat/models.py": """
        from django.conf import settings
        from django.db import models

        class Room(models.Model):
            name = models.CharField(max_length=20)
            members = models.ManyToManyField(settings.AUTH_USER_MODEL)

            def is_member(self, user):
                return self.members.filter(pk=user.pk).exists()

        class Message(models.Model):
            room = models.ForeignKey(Room, on_delete=models.CASCADE)
            text = models.TextField()

            def as_dict(self):
                return {"id": self.pk, "text": self.text}
    """,
    "chat/cable.py": """
        from reliable_cable import Channel, action
        from .models import Message, Room

        class ChatChannel(Channel):
            def subscribed(self):
                room = Room.objects.get(pk=self.params["room_id"])
                if not room.is_member(self.user):
                    return self.reject()
                self.stream_for(room)

            @action
            def speak(self, data):
                message = Message.objects.create(room_id=self.params["room_id"], text=data["text"])
                ChatChannel.broadcast_to(message.room, message.as_dict())
    """,
    "chat/tests.py": """
        from django.contrib.auth.models import User
        from .cable import ChatChannel
        from .models import Room
    """,
}


def run(arguments: list[str], environment: dict[str, str], folder: Path = ROOT) -> str:
    """Run Python in a folder, with the settings of the project, and return its output."""
    variables = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.integration.kit_project.settings", **environment}
    variables.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=100, check=False
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


@pytest.mark.parametrize(("engine", "options"), [("memory", ["-n", "2"]), ("database", [])])
def test_pytest(engine: str, options: list[str]) -> None:
    output = run([*PYTEST, *options, f"{PROJECT}/check_pytest.py"], {"KIT_ENGINE": engine})
    assert re.search(r"\b7 passed", output)


@pytest.mark.parametrize(("engine", "options"), [("memory", ["--parallel", "2"]), ("database", [])])
def test_the_test_runner_of_django(engine: str, options: list[str]) -> None:
    output = run([*DJANGO, *options], {"KIT_ENGINE": engine})
    assert "Ran 6 tests" in output


@pytest.mark.redis
def test_redis(redis_pool: RedisPool) -> None:
    environment = {"KIT_ENGINE": "redis", "KIT_REDIS": redis_pool.get(find_binaries()[0].name).url}
    assert "7 passed" in run([*PYTEST, "-n", "2", f"{PROJECT}/check_pytest.py"], environment)
    assert "Ran 6 tests" in run([*DJANGO, "--parallel", "2"], environment)


@pytest.mark.postgres
@pytest.mark.parametrize("engine", ["memory", "database"])
def test_a_test_database_of_postgresql_can_be_dropped(engine: str, postgres_host: str) -> None:
    """Connections that are kept open by CONN_MAX_AGE do not prevent the drop."""
    environment = {"KIT_ENGINE": engine, "KIT_POSTGRES": postgres_host}
    assert "7 passed" in run([*PYTEST, f"{PROJECT}/check_pytest.py"], environment)
    assert "Ran 6 tests" in run(DJANGO, environment)


def test_the_plugin_does_nothing_in_a_project_without_the_app(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it():\n    pass\n")
    assert "1 passed" in run([*PYTEST, "-p", "no:django", str(tmp_path)], {})


def test_the_block_of_the_page_on_testing(tmp_path: Path) -> None:
    page = (ROOT / "docs/testing.md").read_text()
    (block,) = re.findall(r"^```python\n# chat/tests.py\n(.*?)^```", page, re.M | re.S)
    for name, text in PAGE_PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(dedent(text) + (block if name == "chat/tests.py" else ""))
    environment = {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(tmp_path)}
    output = run(["-W", "error", "-m", "django", "test"], environment, tmp_path)
    assert "Ran 3 tests" in output
