"""Creates the bundle of the JavaScript client.

This module uses only the standard library, because the build of the wheel imports it before Django is installed.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: The folder that contains the bundle.
STATIC = HERE.parent / "static" / "reliable_cable"
INPUTS = (
    "build.mjs",
    "cable.d.mts",
    "cable.js",
    "call.js",
    "keep_subscribed.js",
    "package-lock.json",
    "package.json",
    "runs.js",
    "watch_presence.js",
)
OUTPUTS = ("LICENSES.txt", "anycable.d.ts", "cable.d.mts", "cable.mjs", "cable.js")


class ClientBuildError(Exception):
    """Raised if the bundle could not be created. The message contains the reason."""


def is_built() -> bool:
    """Return whether the bundle exists, even if it is older than its sources."""
    return all((STATIC / name).is_file() for name in OUTPUTS)


def is_fresh() -> bool:
    """Return whether the bundle exists and is not older than its sources.

    In an installed wheel, which contains the bundle without its sources, the result is True.
    """
    if not is_built():
        return False
    inputs = [HERE / name for name in INPUTS if (HERE / name).is_file()]
    built_at = min((STATIC / name).stat().st_mtime for name in OUTPUTS)
    return all(source.stat().st_mtime <= built_at for source in inputs)


def build(*, force: bool = False) -> bool:
    """Create the bundle if it is missing or older than its sources.

    Several processes may call this at once. The first one creates the bundle, and the others wait for it.

    Args:
        force: create the bundle even if it is up to date.

    Returns:
        True if this call has created the bundle.

    Raises:
        ClientBuildError: Node or npm is missing or failed.
    """
    if is_fresh() and not force:
        return False
    if not (HERE / "package.json").is_file():
        raise ClientBuildError(
            "The bundle and its sources are missing from this installation; reinstall reliable_cable."
        )
    node = _program("node")
    install(HERE)
    with _locked(HERE / "package.json"):
        if is_fresh() and not force:
            return False
        _run([node, "build.mjs", str(STATIC)], HERE)
    return True


def install(folder: Path) -> Path:
    """Install the npm packages that a folder's `package-lock.json` lists, unless they are installed.

    The install scripts of the packages do not run. Several processes may call this at once.

    Returns:
        The path of the folder's `node_modules`.

    Raises:
        ClientBuildError: npm is missing or failed.
    """
    lock = folder / "package-lock.json"
    modules = folder / "node_modules"
    stamp = modules / ".installed"
    with _locked(lock):
        wanted = hashlib.sha256((folder / "package.json").read_bytes() + lock.read_bytes()).hexdigest()
        if not stamp.is_file() or stamp.read_text() != wanted:
            # `npm ci` empties node_modules, including the stamp, before it installs. If it fails before that, the old
            # stamp stays, but does not match. So a matching stamp belongs to a complete installation.
            _run([_program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
            stamp.write_text(wanted)
    return modules


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ClientBuildError(
            f"The bundle of the JavaScript client cannot be created: {name} was not found. Install Node.js 20 or "
            "later, with npm. (Released wheels and source archives contain the bundle and need no Node.)"
        )
    return path


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
    """Hold an exclusive lock on a file, so that other processes wait. On Windows, nothing is locked."""
    with path.open("rb") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
