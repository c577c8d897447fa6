"""Runs the tests of the demo in a separate process, because they need the settings of the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT


def manage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `manage.py` with a database in `folder` and with warnings as errors."""
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "demo_project.settings", "DEMO_DATABASE": str(folder / "db")}
    command = [sys.executable, "-W", "error", "manage.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_the_demo_passes_its_tests(tmp_path: Path) -> None:
    result = manage(tmp_path, "test", "demo_project", "--noinput")
    assert result.returncode == 0, result.stderr
    assert "Found 0 test" not in result.stdout + result.stderr


def test_the_demo_passes_all_system_checks(tmp_path: Path) -> None:
    result = manage(tmp_path, "check", "--database", "default", "--fail-level", "WARNING")
    assert result.returncode == 0, result.stderr
