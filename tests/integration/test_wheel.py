"""Tests of wheels and source archives: they contain the bundle, so that users need no Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.node import require_node

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("LICENSES.txt", "anycable.d.ts", "cable.d.mts", "cable.js", "cable.mjs")
BUNDLE = {f"reliable_cable/static/reliable_cable/{name}" for name in NAMES}

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]


def built(folder: str, names: list[str]) -> set[str]:
    """Return the names that `shutil.copytree` must leave out of a copy of this folder, because git ignores them."""
    return {"node_modules", "__pycache__", *(["static"] if Path(folder).name == "reliable_cable" else [])}


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package as in a fresh clone, without the bundle and node_modules."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(ROOT / "reliable_cable", folder / "reliable_cable", ignore=built)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(project: Path, kind: str, out: Path, *, path: str | None = None) -> Path:
    """Build a wheel or a source archive with the packages of this environment. `path` replaces PATH."""
    done = run(
        [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(project)],
        cwd=out.parent,
        path=path,
    )
    assert done.returncode == 0, done.stdout
    (archive,) = out.iterdir()
    return archive


def run(command: list[str], *, cwd: Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without the environment variables of this test run."""
    environment: Mapping[str, str] = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "DJANGO", "PYTEST", "COV")) and name != "VIRTUAL_ENV"
    }
    if path is not None:
        environment = {**environment, "PATH": path}
    return subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


@pytest.fixture(scope="session")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built from a fresh clone with Node."""
    require_node()
    return build(clone, "wheel", tmp_path_factory.mktemp("wheel") / "out")


@pytest.fixture
def no_node(tmp_path: Path) -> str:
    """A value of PATH without Node."""
    (tmp_path / "bin").mkdir()
    return str(tmp_path / "bin")


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment into which pip installed the wheel.

    A path file makes the packages of this environment available, except for editable installs, which would need their
    own path files. So the package itself comes from the wheel.
    """
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    done = run(pip, cwd=folder)
    assert done.returncode == 0, done.stdout
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


PROBE = """
import json
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["django.contrib.staticfiles", "reliable_cable"], STATIC_URL="/static/")
django.setup()
from django.contrib.staticfiles.finders import find
from django.core.management import call_command
import reliable_cable
call_command("cable_client", verbosity=0)
from reliable_cable.client.build import OUTPUTS
names = [f"reliable_cable/{name}" for name in OUTPUTS]
print(json.dumps([reliable_cable.__file__, *map(find, names)]))
"""


def test_the_installed_wheel_has_the_bundle(installed: Path, tmp_path: Path, no_node: str) -> None:
    done = run([str(installed), "-c", PROBE], cwd=tmp_path, path=no_node)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    environment = installed.parents[1].resolve()
    assert len(found) == 1 + len(NAMES)
    for name in found:
        assert name is not None
        assert Path(name).resolve().is_relative_to(environment)
        assert Path(name).stat().st_size


def test_pytest_finds_the_plugin_of_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    # A session that collects nothing has the exit code 5.
    done = run([str(installed), "-m", "pytest", "--fixtures", "-p", "no:django"], cwd=tmp_path)
    assert "channel_tester" in done.stdout


def test_the_wheel_contains_only_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        *BUNDLE,
        "reliable_cable/py.typed",
        "reliable_cable/templatetags/__init__.py",
        "reliable_cable/migrations/0001_initial.py",
        "reliable_cable/management/commands/cable_client.py",
    } <= names
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "reliable_cable/setup/templates").rglob("*-tpl")}
    assert "reliable_cable/setup/templates/templates/cable_example/page.html-tpl" in templates
    assert templates <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "reliable_cable").rglob("*.py")}
    not_shipped = {"reliable_cable/client/hatch_build.py"}
    shipped = {name for name in names if name.startswith("reliable_cable/")}
    kept = {name for name in sources if "/node_modules/" not in name} - not_shipped
    assert {name for name in shipped if name.endswith(".py")} == kept
    assert {name.split("/")[0] for name in names - shipped} == {
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    }
    assert [name for name in names if "node_modules" in name or "package" in name.split("/")[-1]] == []


def test_the_installed_wheel_can_set_up_a_project(installed: Path, tmp_path: Path) -> None:
    start = [str(installed), "-m", "django", "startproject", "mysite", "."]
    assert run(start, cwd=tmp_path).returncode == 0
    done = run([str(installed), "-m", "reliable_cable.setup", "--yes"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "cable_example/templates/cable_example/page.html").read_text().startswith("{% load")
    done = run([str(installed), "manage.py", "test", "cable_example"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_the_wheel_contains_the_licences_of_all_bundled_packages(wheel: Path) -> None:
    text = zipfile.ZipFile(wheel).read("reliable_cable/static/reliable_cable/LICENSES.txt").decode()
    lock = json.loads((ROOT / "reliable_cable/client/package-lock.json").read_text())["packages"]
    for name in ("@anycable/core", "@anycable/web", "nanoevents"):
        assert f"{name} {lock[f'node_modules/{name}']['version']}\n" in text
    assert text.count("Permission is hereby granted") == text.count('THE SOFTWARE IS PROVIDED "AS IS"') == 3
    assert "esbuild" not in text


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("cable.js", "vm.runInThisContext(fs.readFileSync('cable.js', 'utf8')); const names = globalThis.AnyCable"),
        ("cable.mjs", "const names = await import(path.resolve('cable.mjs'))"),
    ],
)
def test_both_forms_of_the_bundle_export_the_same_names(wheel: Path, tmp_path: Path, name: str, script: str) -> None:
    (tmp_path / name).write_bytes(zipfile.ZipFile(wheel).read(f"reliable_cable/static/reliable_cable/{name}"))
    program = f"""
        import fs from 'node:fs'; import path from 'node:path'; import vm from 'node:vm'
        {script}
        console.log(JSON.stringify(Object.keys(names).sort()))
    """
    done = run([require_node(), "--input-type=module", "-e", program], cwd=tmp_path)
    assert json.loads(done.stdout) == [
        "CallError",
        "Channel",
        "call",
        "createCable",
        "createConsumer",
        "fetchTokenFromHTML",
        "followRun",
        "keepSubscribed",
        "watchPresence",
    ]


def test_a_source_archive_contains_the_bundle_and_needs_no_node(
    clone: Path, wheel: Path, tmp_path: Path, no_node: str
) -> None:
    archive = build(clone, "sdist", tmp_path / "sdist")
    (tmp_path / "source").mkdir()
    assert run(["tar", "-xzf", str(archive)], cwd=tmp_path / "source").returncode == 0
    (source,) = (tmp_path / "source").iterdir()
    assert not list(source.rglob("node_modules"))
    again = build(source, "wheel", tmp_path / "again", path=no_node)
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_building_a_wheel_without_bundle_and_node_fails_with_a_reason(
    clone: Path, tmp_path: Path, no_node: str
) -> None:
    shutil.copytree(clone, tmp_path / "project", ignore=built)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(tmp_path / "project")]
    done = run(command, cwd=tmp_path, path=no_node)
    assert done.returncode != 0
    assert "node was not found. Install Node.js" in done.stdout
    assert "Traceback" not in done.stdout


def test_an_editable_install_needs_no_node(clone: Path, tmp_path: Path, no_node: str) -> None:
    project = tmp_path / "project"
    shutil.copytree(clone, project, ignore=built)
    program = "import hatchling.build, sys; print(hatchling.build.build_editable(sys.argv[1]))"
    done = run([sys.executable, "-c", program, str(tmp_path)], cwd=project, path=no_node)
    assert done.returncode == 0, done.stdout
    assert not (project / "reliable_cable" / "static").exists()
    (editable,) = tmp_path.glob("*.whl")
    (path_file,) = [name for name in zipfile.ZipFile(editable).namelist() if name.endswith(".pth")]
    assert zipfile.ZipFile(editable).read(path_file).decode().strip() == str(project)
