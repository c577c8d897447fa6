"""The pytest plugin works in a separate run of pytest (see also tests/integration/test_kit.py).

This suite itself turns the plugin off.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT

TESTS = """
import pytest
from django.contrib.auth import get_user_model
from reliable_cable import broadcast
from reliable_cable.conf import get_settings
from reliable_cable.testing import CableCommunicator, ChannelTester

@pytest.fixture
def cable_settings():
    return {"HISTORY_SIZE": 7}

def test_settings():
    assert get_settings().history_size == 7

def test_broadcasts(broadcasts):
    broadcast("news", "first")
    assert [each.data for each in broadcasts] == ["first"]

def test_each_test_has_its_own_broadcasts(broadcasts):
    assert broadcasts == []

def test_classes(channel_tester, cable_communicator):
    assert channel_tester is ChannelTester
    assert cable_communicator is CableCommunicator

@pytest.mark.django_db
def test_database():
    assert not get_user_model().objects.exists()
"""


def test_its_fixtures_and_settings(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text(TESTS)
    # An editable install that was made before the entry point was added lacks it, so the command names the plugin.
    plugins = ["-p", "no:reliable_cable", "-p", "reliable_cable.testing.pytest_plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-W", "error", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, *plugins, "-o", "asyncio_default_fixture_loop_scope=function", str(tmp_path)],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
