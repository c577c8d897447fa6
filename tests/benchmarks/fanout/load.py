"""Builds and runs the load client, a program in Go (../load)."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from .lines import LineProcess

SOURCE = Path(__file__).parents[1] / "load"


def build() -> Path:
    """Build the program if its source has changed since the last build, and return its path.

    Raises:
        RuntimeError: Go is not installed.
    """
    source = b"".join(path.read_bytes() for path in sorted(SOURCE.iterdir()))
    folder = Path(tempfile.gettempdir()) / f"reliable-cable-load-{hashlib.sha256(source).hexdigest()[:16]}"
    program = folder / "cableload"
    if not program.exists():
        if shutil.which("go") is None:
            raise RuntimeError("the load client is written in Go, and `go` is not on the PATH")
        folder.mkdir(exist_ok=True)
        subprocess.run(["go", "build", "-o", program, "."], cwd=SOURCE, check=True, timeout=300)
    return program


def clients(
    program: Path,
    url: str,
    *,
    streams: int = 1,
    identifier: str | None = None,
    compress: bool = False,
    yielding: bool = False,
) -> LineProcess:
    """Start a load client.

    Args:
        program: the path that `build` returned.
        url: the URL of the server.
        streams: the number of streams.
        identifier: the identifier to subscribe to, with %d for the number of the stream, and %c for that of the
            connection; None: that of `BenchChannel`.
        compress: whether the clients offer permessage-deflate. The server must then accept it.
        yielding: whether the program has a low priority, so that it does not delay other processes.
    """
    first: list[str | Path] = ["nice", "-n", "19"] if yielding else []
    command: list[str | Path] = [*first, program, "-url", url, "-streams", str(streams)]
    if identifier is not None:
        command += ["-identifier", identifier]
    return LineProcess([*command, "-compress"] if compress else command)
