"""`python -m reliable_cable.setup` runs the command `cable_setup` with the project's own manage.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from reliable_cable.setup.__main__ import main

#: A manage.py that writes its arguments to a file, and fails.
MANAGE = "import json, sys\njson.dump(sys.argv[1:], open('arguments', 'w'))\nsys.exit(3)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as the current folder of the process."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_arguments_are_those_of_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "manage.py").write_text(MANAGE)
    monkeypatch.setattr(sys, "argv", ["setup", "--dry-run", "--settings", "mysite.other"])
    assert main() == 3
    *options, code = json.loads((folder / "arguments").read_text())
    assert options == ["shell", "--settings", "mysite.other", "--verbosity", "0", "--command"]
    assert code.endswith(".run_from_argv(['manage.py', 'cable_setup', '--dry-run'])")


def test_it_needs_a_manage_py(folder: Path) -> None:
    assert str(main()).startswith("There is no manage.py here.")
