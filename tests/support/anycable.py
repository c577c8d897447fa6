"""Finds the program anycable-go for tests, or builds it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

VERSION = "1.5.6"
MODULE = f"github.com/anycable/anycable-go@v{VERSION}"
#: Environment variables that keep anycable-go from sending anonymous usage data to its authors.
QUIET = {"ANYCABLE_DISABLE_TELEMETRY": "true"}
#: How long, in seconds, the build of anycable-go may take. It takes two minutes of CPU time.
BUILD_PATIENCE = 900.0


def _cached() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "reliable_cable" / f"anycable-go-{VERSION}"


def _go() -> str | None:
    return shutil.which("go", path=os.pathsep.join([*os.get_exec_path(), "/usr/local/go/bin"]))


def has_anycable() -> bool:
    """Return whether anycable-go is installed, was built before, or can be built."""
    return "CABLE_ANYCABLE" in os.environ or _cached().exists() or _go() is not None


def must_be_built() -> bool:
    """Return whether the first call of `find_anycable` builds anycable-go."""
    return "CABLE_ANYCABLE" not in os.environ and not _cached().exists()


@cache
def find_anycable() -> Path:
    """Return the path of anycable-go. It is built once, from the module proxy of Go, and kept in the user's cache.

    The environment variable `CABLE_ANYCABLE` can name another program.
    """
    if path := os.environ.get("CABLE_ANYCABLE"):
        return Path(path)
    binary = _cached()
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        with binary.with_name(f"{binary.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be building it
            if not binary.exists():
                _build(binary)
    return binary


def _build(binary: Path) -> None:
    go = _go()
    assert go is not None
    # `go install` refuses a module that replaces others. So the module is downloaded, and built in a copy.
    found = subprocess.run([go, "mod", "download", "-json", MODULE], cwd="/", check=True, capture_output=True)
    source, built = binary.with_name(f"source-{os.getpid()}"), binary.with_name(f"built-{os.getpid()}")
    try:
        shutil.copytree(json.loads(found.stdout)["Dir"], source)
        for path in [source, *source.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)
        command = [go, "build", "-buildvcs=false", "-o", str(built), "./cmd/anycable-go"]
        subprocess.run(command, cwd=source, check=True, timeout=BUILD_PATIENCE)
        built.rename(binary)  # so that no other process sees an incomplete file
    finally:
        shutil.rmtree(source, ignore_errors=True)
