"""`manage.py cable_serve` in a project as `startproject` makes it: its output, static files, and `--reload`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.server import Kind, free_port

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
#: Without the settings of these tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
STYLES = "static/admin/css/base.css"

both_servers = pytest.mark.parametrize("kind", ["uvicorn", "daphne"])


class Site:
    """A new project, which one server serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.output = folder / "output"
        subprocess.run([sys.executable, "-m", "django", "startproject", "site1", folder], check=True)
        self.add_settings(SETTINGS)
        self.answer_with("one")
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=folder, env=ENVIRONMENT, check=True)

    def add_settings(self, text: str) -> None:
        """Add lines to the settings."""
        with (self.folder / "site1/settings.py").open("a") as file:
            file.write(text)

    def answer_with(self, text: str) -> None:
        """Let the only page of the project have this text."""
        (self.folder / "site1/urls.py").write_text(URLS.format(text=text))

    @contextmanager
    def served(self, kind: Kind, *options: str) -> Iterator[None]:
        """Serve the project."""
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
            # The reloader has a child process in the same new session.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait_for(self, text: str, *, written: bool = False) -> None:
        """Wait until the page has this text.

        Args:
            text: the text.
            written: whether to write the text into the code now, and again every five seconds. The reloader does not
                notice a change that happens before it has looked at the file for the first time.
        """
        write_at = time.monotonic()
        deadline = write_at + 60
        while True:
            if written and time.monotonic() >= write_at:
                self.answer_with(text)
                write_at += 5
            try:
                if self.get("").text == text:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)

    def get(self, path: str) -> httpx.Response:
        """Request a page."""
        return httpx.get(f"http://127.0.0.1:{self.port}/{path}", trust_env=False)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@both_servers
def test_it_prints_where_it_serves_and_what_it_uses(site: Site, kind: Kind) -> None:
    with site.served(kind):
        output = site.output.read_text()
    assert f"Serving site1.asgi.application at http://127.0.0.1:{site.port}/ with {kind} " in output
    assert "Streams: database 'default'." in output
    assert "Presence: memory of this process." in output
    assert "Sessions: database 'default'." in output
    assert "Static files: /static/, because DEBUG is on." in output


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
        site.wait_for("two", written=True)
        (site.folder / "site1/urls.py").write_text("urlpatterns = [")
        deadline = time.monotonic() + 60
        while "SyntaxError" not in site.output.read_text():
            assert time.monotonic() < deadline, site.output.read_text()
            time.sleep(0.05)
        site.wait_for("three", written=True)
