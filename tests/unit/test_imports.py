"""Imports follow rules that import-linter cannot express, and the contracts of import-linter notice wrong imports.

The contracts are in pyproject.toml. `lint-imports` checks them.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.utils.module_loading import import_string

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "reliable_cable"
MAX_LAYERS = 10


def imported(path: Path) -> set[str]:
    """Return the top-level packages that a module imports with absolute imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", sorted((PACKAGE / "protocol").glob("*.py")), ids=lambda path: path.stem)
def test_the_protocol_needs_no_package_but_fast_json(path: Path) -> None:
    assert imported(path) <= set(sys.stdlib_module_names) | {"reliable_cable", "orjson", "msgspec"}


def test_the_client_is_built_with_the_standard_library_alone() -> None:
    assert imported(PACKAGE / "client" / "build.py") <= set(sys.stdlib_module_names)


def contract(name: str) -> Any:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (found,) = [c for c in pyproject["tool"]["importlinter"]["contracts"] if c["id"] == name]
    return found


def test_the_documentation_has_the_layers_of_the_contract() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (`[^|]+`) \|$", page, re.MULTILINE)
    documented = [set(re.findall(r"`(\w+)`", modules)) for _, modules in rows]
    assert documented == [set(layer.split(" | ")) for layer in contract("layers")["layers"]]
    assert [int(number) for number, _ in rows] == list(range(len(rows), 0, -1))
    assert len(rows) <= MAX_LAYERS


#: For each module, code that breaks a contract if it is added, and a part of the report of lint-imports about it.
WRONG = {
    "hub/stream.py": ("from reliable_cable.consumer import CableConsumer", "hub.stream -> reliable_cable.consumer"),
    "channel.py": ("def later():\n    from . import connection", "channel -> reliable_cable.connection"),
    "signing.py": ("if TYPE_CHECKING:\n    from .auth import CableAuth", "signing -> reliable_cable.auth"),
    "stores/sessions/memory.py": ("from ..streams.base import StreamStore", "memory -> reliable_cable.stores.streams"),
    "stores/streams/model_numbering.py": ("from .model import ModelStreamStore", "- .model_numbering -> .model"),
    "protocol/frames.py": ("import time", "protocol.frames -> time"),
    "protocol/messages.py": ("from django.utils import timezone", "protocol.messages -> django"),
    "hub/heartbeat.py": ("from reliable_cable.models import Stream", "hub.heartbeat -> reliable_cable.models"),
    "hub/history.py": (
        "from reliable_cable.stores.redis.keys import lineage_key",
        "history -> reliable_cable.stores.redis",
    ),
    "hub/rosters.py": ("from redis import Redis", "hub.rosters -> redis"),
    "broadcasting.py": ("from .hub import hub", "broadcasting -> reliable_cable.hub"),
    "consumer.py": ("from .client import build", "consumer -> reliable_cable.client"),
    "admin.py": ("import libcst", "admin -> libcst"),
    "templatetags/reliable_cable.py": ("from reliable_cable.setup import plan", "reliable_cable.setup.plan"),
    "checks/settings.py": (
        "from reliable_cable.migrations import __path__",
        "checks.settings -> reliable_cable.migrations",
    ),
    "apps.py": ("import tests.settings", "apps -> tests"),
    "urls.py": ("import demo_project", "urls -> demo_project"),
    "novel.py": ("", "- reliable_cable.novel"),
    "stores/novel.py": ("", "- reliable_cable.stores.novel"),
}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the copy of the package in a folder with the contracts of this project."""
    program = Path(sys.executable).with_name("lint-imports")
    command = [str(program), "--no-cache", "--no-logo", str(ROOT / "pyproject.toml")]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, env={"COLUMNS": "1000", "PATH": ""}
    )


def test_the_contracts_notice_wrong_imports(tmp_path: Path) -> None:
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    copy = tmp_path / "reliable_cable"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("node_modules", "static", "__pycache__"))
    result = lint_imports(tmp_path)
    assert result.returncode == 0, result.stdout
    for name, (line, _) in WRONG.items():
        with (copy / name).open("a") as module:
            module.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode != 0
    assert [name for name, (_, complaint) in WRONG.items() if complaint not in result.stdout] == [], result.stdout
    assert " KEPT" not in result.stdout


#: The public names that modules had before they were moved to `stores`. Settings may have the paths of the classes in
#: `ENGINE`, and engines of other projects import from the modules.
FORMER = {
    "presence.base": [
        *("Member", "PresenceEvent", "PresenceInfo", "PresenceListener", "PresenceMissed", "PresenceStore"),
        *("OUTAGE_PART", "Refreshed", "UNHEARD_TIME"),
    ],
    "presence.memory": ["MemoryPresenceListener", "MemoryPresenceStore"],
    "presence.redis": ["RedisPresenceListener", "RedisPresenceStore"],
    "sessions.base": [
        *("CLOCK_MARGIN", "MAX_SID_LENGTH", "SessionRecord", "SessionStore", "is_revoked", "is_session_id"),
    ],
    "sessions.memory": ["MemorySessionStore"],
    "sessions.model": ["ModelSessionStore"],
    "sessions.redis": ["RedisSessionStore"],
    "streams.base": [
        *("Advanced", "Message", "Published", "StreamEvent", "StreamListener", "StreamStore", "Transient"),
        *("IDLE_STREAM_TTL", "NOWHERE", "YOUNG_SIZE", "YOUNG_TIME", "moved"),
    ],
    "streams.durable": ["DurableStreamStore"],
    "streams.memory": ["MemoryStreamStore"],
    "streams.model": ["ModelStreamStore"],
    "streams.redis": ["RedisStreamStore"],
}

#: The current names of the public names that were renamed.
RENAMED = {"OUTAGE_PART": "OUTAGE_SHARE"}


@pytest.mark.parametrize("module", FORMER)
def test_a_former_module_has_the_names_that_it_had(module: str) -> None:
    former = import_module(f"reliable_cable.{module}")
    for name in FORMER[module]:
        present = import_string(f"reliable_cable.stores.{module}.{RENAMED.get(name, name)}")
        assert getattr(former, name) is present
        if isinstance(present, type):
            assert present.__module__ == f"reliable_cable.stores.{module}"
