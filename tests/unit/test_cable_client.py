"""`manage.py cable_client` works without Node. tests/integration/test_wheel.py tests the command with Node."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.management import CommandError, call_command


def test_the_bundle_cannot_be_created_without_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match=r"node was not found\. Install Node\.js"):
        call_command("cable_client", force=True)
