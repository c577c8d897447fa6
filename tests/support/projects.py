"""Django projects in environments of their own, as users make them, and servers that run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import httpx
import pytest
from django import get_version

from tests.support.server import LOCAL, PATIENCE, ROOT, Server

#: Python interpreters to try, by name or path. Those of pyenv have paths, because its shims run only selected versions.
PYTHONS = (
    *(f"python3.{minor}" for minor in (13, 12, 14)),
    *sorted(Path.home().glob(".pyenv/versions/3.1[2-4]*/bin/python")),
)


def missing(what: str) -> None:
    """Skip the test, or fail it if `CABLE_REQUIRE` says that no dependency may be missing."""
    (pytest.fail if os.environ.get("CABLE_REQUIRE") == "1" else pytest.skip)(f"{what} is missing")


def own_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of this process, without variables that would affect a project, and with `variables`."""
    foreign = ("PYTHON", "DJANGO", "PYTEST", "COV", "RELIABLE_CABLE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    kept.pop("VIRTUAL_ENV", None)
    return {**kept, "PYTHONUNBUFFERED": "1", **(variables or {})}


def interpreter_for(django: str) -> str:
    """Return a Python interpreter that can run this version of Django, for example "5.2"."""
    return sys.executable if sys.version_info >= (3, 12) or django == "5.2" else _newer_python()


@cache
def _newer_python() -> str:
    """Return another Python interpreter that can run Django 6."""
    for candidate in map(str, PYTHONS):
        program = shutil.which(candidate)
        if program and subprocess.run([program, "-c", "import ssl, sqlite3"], capture_output=True).returncode == 0:
            return program
    missing("Python 3.12 or later")
    raise AssertionError


class Environments:
    """Virtual environments, each with this package, its dependencies and one version of Django, made on first use.

    Args:
        folder: the folder for the environments.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, django: str) -> Path:
        """Return the Python of the environment with a version of Django, for example "5.2".

        If the environment of these tests has that version, return its Python.
        """
        if get_version().startswith(f"{django}."):
            return Path(sys.executable)
        folder = self._folder / django
        python = folder / "bin" / "python"
        if not python.exists():
            self._uv("venv", "--python", interpreter_for(django), str(folder))
            packages = ["-r", str(ROOT / "pyproject.toml"), "--extra", "setup", f"django=={django}.*"]
            self._uv("pip", "install", "--python", str(python), *packages)
            (site_packages,) = folder.glob("lib/python*/site-packages")
            (site_packages / "reliable_cable.pth").write_text(f"{ROOT}\n")
        return python

    def _uv(self, *arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", "uv", *arguments, "--quiet"], capture_output=True, text=True)
        if done.returncode:
            missing(f"uv, or what it installs ({done.stderr.strip()})")


class Project:
    """A Django project in a folder.

    Args:
        folder: the folder of its manage.py.
        python: the Python that runs it.
    """

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self.python = python
        folder.mkdir(exist_ok=True)

    @classmethod
    def start(cls, folder: Path, python: Path) -> Project:
        """Make a project with `django-admin startproject`."""
        project = cls(folder, python)
        done = project.run("-m", "django", "startproject", "mysite", ".")
        assert done.returncode == 0, done.stdout
        return project

    def write(self, files: Mapping[str, str]) -> None:
        """Write files, and overwrite those that exist."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def run(self, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        """Run Python in the folder of the project; return its exit code and its output.

        Args:
            arguments: the arguments of Python.
            answer: what the user enters.
        """
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=self.folder,
            env=own_environment(),
            input=answer,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE * 2,
        )

    def manage(self, *arguments: str, answer: str = "") -> str:
        """Run a management command, which must succeed, and return its output."""
        done = self.run("manage.py", *arguments, answer=answer)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def set_up(self, *options: str, answer: str = "") -> str:
        """Run `python -m reliable_cable.setup`, which must succeed, and return its output."""
        done = self.run("-m", "reliable_cable.setup", *options, answer=answer)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def files(self) -> dict[str, bytes]:
        """Return the content of all files except SQLite files and compiled modules, by their paths."""
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        kept = [path for path in paths if "__pycache__" not in path.parts and path.suffix != ".sqlite3"]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in kept}


class ProjectServer(Server):
    """A project that is served by `manage.py runserver`.

    Args:
        project: the project. Its database has been migrated.
        folder: the folder for the log.
    """

    def __init__(self, project: Project, folder: Path) -> None:
        super().__init__("daphne", folder, project.folder, shared=True)
        self.project = project
        self.directory = project.folder
        self.environment = own_environment()

    def page(self, path: str) -> httpx.Response:
        """Request a page."""
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", **LOCAL)

    def _command(self) -> list[str]:
        return [str(self.project.python), "manage.py", "runserver", "--noreload", f"127.0.0.1:{self.port}"]

    def _answers(self) -> bool:
        self.page("/")  # a project may have no page there
        return True


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Environments:
    """The virtual environments of this test process."""
    return Environments(tmp_path_factory.mktemp("environments"))
