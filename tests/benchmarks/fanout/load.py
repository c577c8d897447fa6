"""The load client: a program in Go (../load), built when it is needed, and run as a process of its own."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from .lines import LineProcess

SOURCE = Path(__file__).parents[1] / "load"


def build() -> Path:
    """Return the program, built anew only if its source has changed.

    Raises:
        RuntimeError: there is no Go here.
    """
    source = b"".join(path.read_bytes() for path in sorted(SOURCE.iterdir()))
    folder = Path(tempfile.gettempdir()) / f"reliable-cable-load-{hashlib.sha256(source).hexdigest()[:16]}"
    program = folder / "cableload"
    if not program.exists():
        if shutil.which("go") is None:
            raise RuntimeError("The load client is written in Go, and there is no `go` on the PATH.")
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
        program: from `build`.
        url: where the server is.
        streams: how many there are.
        identifier: what to subscribe to, with %d for the stream's number; None: the project's channel.
        compress: whether they offer permessage-deflate, to which the server must agree.
        yielding: whether they leave the processor to others, who else would wait for it.
    """
    first: list[str | Path] = ["nice", "-n", "19"] if yielding else []
    command: list[str | Path] = [*first, program, "-url", url, "-streams", str(streams)]
    if identifier is not None:
        command += ["-identifier", identifier]
    return LineProcess([*command, "-compress"] if compress else command)
