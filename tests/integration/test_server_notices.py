"""Mistakes that servers hide or report without a remedy: each has a line in the log that says what to do."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.client import PATIENCE, Client
from tests.support.server import PROJECT, Kind, Server, make_database

APPLICATION = f"{PROJECT}.asgi:application"
COMMANDS: Mapping[str, tuple[Kind, list[str]]] = {
    "daphne": ("daphne", ["daphne", "-b", "127.0.0.1", "-p", "{port}", APPLICATION]),
    "runserver": ("daphne", ["django", "runserver", "--noreload", "127.0.0.1:{port}"]),
    "cable_serve with daphne": ("daphne", ["django", "cable_serve", "--server", "daphne", "127.0.0.1:{port}"]),
    "uvicorn": ("uvicorn", ["uvicorn", "--host", "127.0.0.1", "--port", "{port}", APPLICATION]),
    "cable_serve": ("uvicorn", ["django", "cable_serve", "127.0.0.1:{port}"]),
}
every_command = pytest.mark.parametrize("command", COMMANDS)


class CommandServer(Server):
    """A server that one of `COMMANDS` starts."""

    def __init__(self, command: str, folder: Path, template: Path, *, shared: bool = False) -> None:
        kind, self._words = COMMANDS[command]
        # Only `runserver` needs daphne in INSTALLED_APPS.
        apps = ["daphne"] if "runserver" in self._words else []
        super().__init__(kind, folder, template, shared=shared, CABLE_TEST_SERVER_APPS=json.dumps(apps))

    def _command(self) -> list[str]:
        return [sys.executable, "-m", *(word.replace("{port}", str(self.port)) for word in self._words)]

    async def logs(self, text: str) -> None:
        """Wait until the log contains a text."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while text not in self.log:
            assert asyncio.get_running_loop().time() < deadline, self.log
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("notices"))


@every_command
async def test_a_coroutine_that_was_never_awaited_is_reported(command: str, template: Path, tmp_path: Path) -> None:
    with CommandServer(command, tmp_path, template) as server:
        await server.call("broadcast_without_await", "room")
        await server.logs("coroutine 'abroadcast' was never awaited")
        assert "tests/integration/project/calls.py:" in server.log


async def refuse(server: Server, path: str) -> None:
    """Try to open a WebSocket that the server refuses."""
    url = server.url.replace("/cable", path)
    with pytest.raises(InvalidStatus):
        await Client(url).open()


@every_command
async def test_a_wrong_path_is_one_line_that_names_the_right_one(command: str, template: Path, tmp_path: Path) -> None:
    with CommandServer(command, tmp_path, template) as server:
        await refuse(server, "/cabel")
        await server.logs("No WebSocket route has the path '/cabel'. The routes are: /cable, /tenants, /layered.")
        assert "Traceback" not in server.log
