"""The commands in docs/deployment.md start servers whose output has no session ids, tokens or cookies."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.client import EXTENDED, PATIENCE, Client
from tests.support.server import PROJECT, ROOT, environment, free_port, make_database

PAGE = (ROOT / "docs/deployment.md").read_text()
SECRET = "0SECRET0"
QUERY = f"jid={SECRET}jid&access_token={SECRET}token"

#: Requests that are not valid handshakes. The servers answer some of them without calling the application.
BROKEN = {
    "no handshake": "GET /cable?sid={sid}&jid={sid} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a wrong version": "GET /cable?sid={sid} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    "Upgrade: websocket\r\nSec-WebSocket-Version: 3\r\nSec-WebSocket-Key: x\r\n\r\n",
    "a path without an application": "GET /nowhere?sid={sid}&jid={sid} HTTP/1.1\r\nHost: localhost\r\n"
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    "no HTTP": "GET /cable?sid={sid}\r\n\r\n",
}


def commands() -> list[str]:
    """Return the commands of docs/deployment.md that start a server, and `runserver`."""
    lines = re.findall(r"^\.venv/bin/(.*(?:uvicorn --|daphne -|cable_serve).*)$", PAGE, re.MULTILINE)
    # The page has all of these commands except `runserver`, which is in README.md.
    return [re.sub(r"\s+#.*", "", line) for line in lines if "workers" not in line] + ["python manage.py runserver"]


def command_line(command: str, port: int) -> list[str]:
    """Change a command of docs/deployment.md so that it serves the test project on this port. Return its arguments."""
    program, *words = command.replace("demo_project.asgi", f"{PROJECT}.asgi").split()
    words = [word.replace("manage.py", "-mdjango").replace("8000", str(port)) for word in words]
    if program == "uvicorn":
        words += ["--port", str(port)]
    if words[-1] == "runserver":
        words += ["--noreload", f"127.0.0.1:{port}"]
    return [sys.executable, *([] if program == "python" else ["-m", program]), *words]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("logs"))


@contextmanager
def running(command: list[str], database: Path, log: Path, port: int) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(database), stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
        process.wait(60)


async def send(port: int, request: str) -> None:
    """Send a request, and wait until the server has answered or closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.encode())
        async with asyncio.timeout(PATIENCE):
            await reader.read(1)
    finally:
        writer.close()


async def connect_in_all_ways(port: int) -> list[str]:
    """Open connections, of which the server refuses some, and return the session ids of the accepted connections."""
    url = f"ws://127.0.0.1:{port}/cable"
    headers = {"X-JID": f"{SECRET}header", "Authorization": f"Bearer {SECRET}bearer"}
    cookie = f"sessionid={SECRET}cookie"
    protocols = (EXTENDED, f"anycable-token.{SECRET}protocol")
    async with Client(url, query=QUERY, headers=headers, cookie=cookie, protocols=protocols) as first:
        pass
    async with Client(url, sid=first.welcome["sid"], query=QUERY) as second:
        pass
    headers = {"X-ANYCABLE-RESTORE-SID": second.welcome["sid"]}
    async with Client(url, headers=headers) as third:
        pass
    sids = [str(client.welcome["sid"]) for client in (first, second, third)]
    expired = Client(url, sid=sids[2], query=f"{QUERY}&token=expired")
    await expired.open()
    await expired.expect({"type": "disconnect", "reason": "token_expired"})
    await expired.close()
    with pytest.raises(InvalidStatus):
        await Client(url, sid=sids[2], query=QUERY, origin="http://evil.com").open()
    for request in BROKEN.values():
        await send(port, request.format(sid=f"{SECRET}sid"))
    return sids


OPTIONS: dict[str, Callable[[list[str]], list[str]]] = {
    "as in the page": lambda command: command,
    "with all levels": lambda command: (
        [*command, "--log-level", "debug"]
        if "cable_serve" in command
        else [*command[:3], "--log-level", "trace", *command[3:]]
        if "uvicorn" in command
        else [*command[:3], "-v", "3", *command[3:]]
        if "daphne" in command
        else [*command, "-v", "3"]
    ),
    "with workers": lambda command: [*command, "--workers", "2"],
}


@pytest.mark.parametrize(
    ("command", "options"),
    [
        *((command, options) for command in commands() for options in ("as in the page", "with all levels")),
        *((command, "with workers") for command in commands() if command.startswith("uvicorn")),
    ],
)
async def test_the_output_of_a_server_has_no_secrets(
    command: str, options: str, database: Path, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "log"
    with running(OPTIONS[options](command_line(command, port)), database, log, port):
        sids = await connect_in_all_ways(port)
    output = log.read_text(errors="replace")
    lines = [line for line in output.splitlines() if SECRET in line or any(sid in line for sid in sids)]
    assert lines == []
    if command.startswith(("uvicorn", "daphne")):
        assert "?sid=***" in output, "the requests were logged"


def test_the_page_has_a_command_for_each_server() -> None:
    assert [command.split()[0] for command in commands()].count("uvicorn") == 1
    assert [command.split()[0] for command in commands()].count("daphne") == 1
    assert sum("cable_serve" in command for command in commands()) >= 2
