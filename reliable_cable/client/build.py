"""Makes the bundle of the JavaScript client. Needs no other package: the wheel's build uses it too."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
STATIC = HERE.parent / "static" / "reliable_cable"
INPUTS = ("build.mjs", "cable.js", "package-lock.json", "package.json")
OUTPUTS = ("LICENSES.txt", "cable.mjs", "cable.js")


class ClientBuildError(Exception):
    """The bundle could not be made; the message says what to do."""


def is_built() -> bool:
    """Say whether the bundle is there, whether or not it is up to date."""
    return all((STATIC / name).is_file() for name in OUTPUTS)


def is_fresh() -> bool:
    """Say whether the bundle is there and no older than what it is made from.

    An installed wheel has the bundle without its sources: that one is fresh.
    """
    if not is_built():
        return False
    inputs = [HERE / name for name in INPUTS if (HERE / name).is_file()]
    made = min((STATIC / name).stat().st_mtime for name in OUTPUTS)
    return all(source.stat().st_mtime <= made for source in inputs)


def build(*, force: bool = False) -> bool:
    """Make the bundle if it is missing or older than its sources, and return whether it was made.

    Several processes may call this at once: the first one makes it, the others wait.

    Args:
        force: make it in any case.

    Raises:
        ClientBuildError: Node or npm is missing, or failed.
    """
    if is_fresh() and not force:
        return False
    if not (HERE / "package.json").is_file():
        raise ClientBuildError("This installation has no sources of the client; reinstall reliable_cable.")
    node = _program("node")
    install(HERE)
    with _locked(HERE / "package.json"):
        if is_fresh() and not force:
            return False
        _run([node, "build.mjs", str(STATIC)], HERE)
    return True


def install(folder: Path) -> Path:
    """Install the npm packages that a folder's lock names, unless that was done; return its `node_modules`.

    No package's install script is run. Several processes may call this at once.

    Raises:
        ClientBuildError: npm is missing, or failed.
    """
    lock = folder / "package-lock.json"
    modules = folder / "node_modules"
    stamp = modules / ".installed"
    with _locked(lock):
        wanted = hashlib.sha256((folder / "package.json").read_bytes() + lock.read_bytes()).hexdigest()
        if not stamp.is_file() or stamp.read_text() != wanted:
            # npm removes node_modules, and the stamp in it, before it begins.
            _run([_program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
            stamp.write_text(wanted)
    return modules


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ClientBuildError(
            f"The JavaScript client's bundle has to be made, and {name} was not found: install Node.js 20 or later, "
            "with npm. (Released wheels and source archives of reliable_cable hold the bundle and need no Node.)"
        )
    return found


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(  # noqa: S603 - our own commands, found on PATH
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise ClientBuildError(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stdout.strip()}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out that lock the same file; on Windows nothing is locked."""
    with path.open("rb") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
