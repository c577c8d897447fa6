"""Copies files of npm packages (Turbo, htmx, and two for Markdown) into the static files of the demo."""

from __future__ import annotations

import subprocess
from pathlib import Path

from reliable_cable.client.build import install

#: The folder with the `package.json` that names the packages and their versions.
SOURCE = Path(__file__).resolve().parents[1] / "npm"
#: The folder of static files into which the packages are copied.
TARGET = Path(__file__).resolve().parent / "static" / "npm"


def copy_packages() -> None:
    """Install the packages and copy their files, unless these versions were copied before. This needs Node and npm."""
    lock = TARGET / "package-lock.json"
    if lock.is_file() and lock.read_bytes() == (SOURCE / "package-lock.json").read_bytes():
        return
    install(SOURCE)
    subprocess.run(["node", "copy.mjs"], cwd=SOURCE, check=True)  # noqa: S607 - `install` has found Node's npm
