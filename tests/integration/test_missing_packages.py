"""Servers on machines that lack an optional package of this project, or a module of Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.server import LOCAL, PROJECT, ROOT, Kind, Server, ServerPool

EXTRA = "pip install 'reliable_cable[uvicorn]'"


def without(module: str, program: str, *arguments: str) -> list[str]:
    """Return the command of a Python program for which a module does not exist."""
    code = f"import runpy, sys; sys.modules[{module!r}] = None; runpy.run_module({program!r}, run_name='__main__')"
    return [sys.executable, "-c", code, *arguments]


def output_of(command: list[str], server: Server) -> str:
    """Run a server that cannot start, and return its output."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    return done.stdout


@pytest.fixture
def uvicorn(servers: ServerPool) -> Server:
    return servers.make("uvicorn")


@pytest.mark.parametrize("option", [[], ["--compress"]])
@pytest.mark.parametrize("package", ["uvicorn", "websockets", "httptools"])
def test_cable_serve_names_the_extra_for_a_missing_package(uvicorn: Server, package: str, option: list[str]) -> None:
    output = output_of(without(package, "django", "cable_serve", *option, "127.0.0.1:1"), uvicorn)
    assert f"CommandError: The Python package {package} is not installed: {EXTRA}" in output


@pytest.mark.parametrize("protocol", ["uvicorn:CableWebSocketProtocol", "deflate:CompressingWebSocketProtocol"])
def test_the_command_of_uvicorn_names_the_extra_for_a_missing_package(uvicorn: Server, protocol: str) -> None:
    arguments = ["--port", "1", "--ws", f"reliable_cable.servers.{protocol}", f"{PROJECT}.asgi:application"]
    output = output_of(without("websockets", "uvicorn", *arguments), uvicorn)
    assert f"reliable_cable.servers.uvicorn needs the Python package websockets: {EXTRA}" in output


@pytest.mark.parametrize(
    ("kind", "module"),
    [("uvicorn", "resource"), ("daphne", "resource"), ("daphne", "uvicorn"), ("daphne", "websockets")],
)
def test_cable_serve_starts_without_what_the_server_does_not_need(
    servers: ServerPool, tmp_path: Path, kind: Kind, module: str
) -> None:
    class Lacking(Server):
        def _command(self) -> list[str]:
            return without(module, "django", "cable_serve", "--server", kind, f"127.0.0.1:{self.port}")

    with Lacking(kind, tmp_path, servers.make(kind).database) as server:
        assert httpx.get(f"http://127.0.0.1:{server.port}/", **LOCAL).status_code < 500
