"""The files of the repository follow rules for the top level, the length of modules, and lock files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "demo_project",
    "docs",
    "manage.py",
    "pyproject.toml",
    "reliable_cable",
    "tests",
}
#: The maximum number of lines of a module of the package, and of any other module.
MAX_LINES = 400
MAX_OTHER_LINES = 420
#: An exact version, perhaps of a package that is installed under another name.
VERSION = re.compile(r"(npm:[\w./@-]+@)?\d+\.\d+\.\d+")
NPM_FOLDERS = ("reliable_cable/client", "tests/node", "demo_project/npm")


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """The paths of the files that git tracks or would add, relative to the root."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [Path(name) for name in listed.split("\0") if name]
    return [path for path in paths if (ROOT / path).is_file()]


def test_the_top_level_has_only_known_files_and_folders(files: list[Path]) -> None:
    assert {path.parts[0] for path in files} - TOP == set()


def test_no_module_is_long(files: list[Path]) -> None:
    modules = [path for path in files if path.suffix in (".py", ".js", ".mjs")]
    assert modules
    for path in modules:
        lines = len((ROOT / path).read_text().splitlines())
        assert lines <= (MAX_LINES if path.parts[0] == "reliable_cable" else MAX_OTHER_LINES), path


def test_built_files_are_not_in_git(files: list[Path]) -> None:
    built = {"node_modules", "static/reliable_cable", "static/npm", "__pycache__"}
    assert [str(path) for path in files if any(f"/{name}/" in f"/{path.as_posix()}" for name in built)] == []


@pytest.mark.parametrize("folder", NPM_FOLDERS)
def test_npm_packages_are_pinned_exactly(folder: str) -> None:
    package = json.loads((ROOT / folder / "package.json").read_text())
    dependencies = package.get("dependencies", {}) | package.get("devDependencies", {})
    assert dependencies
    assert [name for name, version in dependencies.items() if not VERSION.fullmatch(version)] == []


@pytest.mark.parametrize("folder", NPM_FOLDERS)
def test_npm_locks_name_hashes_and_no_host(folder: str) -> None:
    """A host would tie the lock file to the registry of the machine that wrote it."""
    packages = json.loads((ROOT / folder / "package-lock.json").read_text())["packages"]
    installed = {path: entry for path, entry in packages.items() if path}
    assert installed
    assert [path for path, entry in installed.items() if not entry.get("integrity", "").startswith("sha512-")] == []
    assert [path for path, entry in installed.items() if "resolved" in entry] == []


def test_both_npm_folders_use_the_same_client() -> None:
    """The bundle for browsers and the tests in Node run the same code."""
    locks = [json.loads((ROOT / folder / "package-lock.json").read_text())["packages"] for folder in NPM_FOLDERS]
    for name in ("@anycable/core", "@anycable/web", "nanoevents"):
        assert locks[0][f"node_modules/{name}"] == locks[1][f"node_modules/{name}"]
