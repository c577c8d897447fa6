"""Packages of projects for the unit tests of `manage.py cable_setup`."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from reliable_cable.management.commands.cable_setup import Command

_numbers = itertools.count(1)

SETTINGS = 'INSTALLED_APPS = ["django.contrib.auth"]\n'
ASGI = """\
from django.core.asgi import get_asgi_application

application = get_asgi_application()
"""
URLS = "from django.urls import path\n\nurlpatterns = []\n"

MakeSite = Callable[..., "Site"]


class Site:
    """The package of a project that was made for one test. Settings such as `ROOT_URLCONF` name its modules."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    def __getitem__(self, name: str) -> str:
        return (self.folder / name).read_bytes().decode().replace(self.name, "SITE")

    def set_up(self, **options: Any) -> str:
        """Run `manage.py cable_setup`, by default with `example=False`, and return its output."""
        output = io.StringIO()
        call_command(Command(), stdout=output, no_color=True, **{"yes": True, "example": False, **options})
        return output.getvalue().replace(self.name, "SITE")


@pytest.fixture
def make_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> MakeSite:
    """A function that makes a project. Given files replace the usual ones. `SITE` in files becomes the package name."""

    def make(files: Mapping[str, str] | None = None, apps: tuple[str, ...] = ("django.contrib.auth",)) -> Site:
        name = f"site_{next(_numbers)}"
        site = Site(tmp_path / name, name)
        for path, text in {"settings.py": SETTINGS, "asgi.py": ASGI, "urls.py": URLS, **(files or {})}.items():
            file = site.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.replace("SITE", name).encode())
        (site.folder / "__init__.py").touch()
        monkeypatch.setenv("DJANGO_SETTINGS_MODULE", f"{name}.settings")
        settings.ROOT_URLCONF = f"{name}.urls"
        settings.WSGI_APPLICATION = f"{name}.wsgi.application"
        settings.INSTALLED_APPS = list(apps)
        del settings.ASGI_APPLICATION
        del settings.RELIABLE_CABLE
        return site

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return make
