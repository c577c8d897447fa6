"""`manage.py cable_serve` in a project as `startproject` makes it: its output, static files, and `--reload`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.server import LOCAL, Kind, free_port

SETTINGS = """
INSTALLED_APPS = ["daphne", "reliable_cable", *INSTALLED_APPS]
ASGI_APPLICATION = "site1.asgi.application"
ALLOWED_HOSTS = ["127.0.0.1"]
"""
URLS = """
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse({text!r}))]
"""
#: The environment of this process, without the settings module of these tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
STYLES = "static/admin/css/base.css"

both_servers = pytest.mark.parametrize("kind", ["uvicorn", "daphne"])


class Site:
    """A new project, which is served by one server at a time.

    Args:
        folder: the folder of its manage.py.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.output = folder / "output"

    def make(self) -> None:
        """Make the project and its database."""
        subprocess.run([sys.executable, "-m", "django", "startproject", "site1", self.folder], check=True)
        self.add_settings(SETTINGS)
        self.answer_with("one")
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=self.folder, env=ENVIRONMENT, check=True)

    def add_settings(self, text: str) -> None:
        """Add lines to the settings."""
        with (self.folder / "site1/settings.py").open("a") as file:
            file.write(text)

    def answer_with(self, text: str) -> None:
        """Make the only page of the project show this text."""
        (self.folder / "site1/urls.py").write_text(URLS.format(text=text))

    def break_code(self) -> None:
        """Write code that Python cannot parse."""
        (self.folder / "site1/urls.py").write_text("urlpatterns = [")

    @contextmanager
    def served(self, kind: Kind, *options: str) -> Iterator[None]:
        """Run `cable_serve` until the block ends. When the block begins, the page has the text "one"."""
        command = [sys.executable, "manage.py", "cable_serve", f"127.0.0.1:{self.port}", "--server", kind, *options]
        with self.output.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=ENVIRONMENT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait_for("one")
            yield
        finally:
            # The reloader has a child process, which is in the same process group.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait_for(self, text: str) -> None:
        """Wait until the page has this text."""
        self.wait_until(lambda: self.has(text))

    def wait_until(self, condition: Callable[[], bool], write: Callable[[], object] = lambda: None) -> None:
        """Wait until a condition is true.

        Args:
            condition: the condition.
            write: changes the code. It is called at once, and again every five seconds, because the reloader does not
                notice a change that happens before it has looked at the file for the first time.
        """
        write_at = time.monotonic()
        deadline = write_at + 90
        while not condition():
            assert time.monotonic() < deadline, self.output.read_text()
            if time.monotonic() >= write_at:
                write()
                write_at += 5
            time.sleep(0.05)

    def has(self, text: str) -> bool:
        """Return whether the page can be read and has this text."""
        try:
            return self.get("").text == text
        except httpx.TransportError:
            return False

    def get(self, path: str) -> httpx.Response:
        """Request a page."""
        return httpx.get(f"http://127.0.0.1:{self.port}/{path}", **LOCAL)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project, which each test copies."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.make()
    return site.folder


@pytest.fixture
def site(template: Path, tmp_path: Path) -> Site:
    return Site(Path(shutil.copytree(template, tmp_path / "site")))


@both_servers
def test_it_prints_where_it_serves_and_what_it_uses(site: Site, kind: Kind) -> None:
    with site.served(kind):
        output = site.output.read_text()
    assert f"Serving site1.asgi.application at http://127.0.0.1:{site.port}/ with {kind} " in output
    assert "Streams: database 'default'." in output
    assert "Presence: database 'default'." in output
    assert "Sessions: database 'default'." in output
    assert "Static files: /static/, because DEBUG is on." in output


def test_it_says_that_other_processes_cannot_broadcast_to_streams_in_memory(site: Site) -> None:
    site.add_settings('RELIABLE_CABLE = {"ENGINE": "memory"}')
    with site.served("uvicorn"):
        output = site.output.read_text()
    assert "Streams: memory of this process (broadcasts of other processes are not received)." in output


@both_servers
def test_static_files_are_served_only_while_debug_is_on(site: Site, kind: Kind) -> None:
    with site.served(kind):
        styles = site.get(STYLES)
        assert (styles.status_code, styles.headers["content-type"]) == (200, "text/css")
    site.add_settings("DEBUG = False")
    with site.served(kind):
        assert site.get(STYLES).status_code == 404
        assert "Static files" not in site.output.read_text()


@both_servers
def test_it_reloads_changed_code_and_survives_an_error_in_it(site: Site, kind: Kind) -> None:
    with site.served(kind, "--reload"):
        site.wait_until(lambda: site.has("two"), partial(site.answer_with, "two"))
        site.wait_until(lambda: "SyntaxError" in site.output.read_text(), site.break_code)
        site.wait_until(lambda: site.has("three"), partial(site.answer_with, "three"))
