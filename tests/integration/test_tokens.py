"""Tokens with real servers: the unmodified npm client refreshes them, and no log contains them."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest

from tests.integration.test_npm import run
from tests.integration.test_server_logs import OPTIONS, command_line, commands, database, running
from tests.support.client import EXTENDED, Client, identify
from tests.support.server import Kind, ServerPool, environment, free_port

__all__ = ["database"]

SECRET = "a secret that signs tokens in tests"


@pytest.mark.node
async def test_the_npm_client_refreshes_its_token_and_loses_nothing(servers: ServerPool, kind: Kind) -> None:
    await run(servers.get(kind, JWT_SECRET=SECRET, JWT_LEEWAY=0), "tokens.mjs", 7)


async def test_a_restore_checks_the_token_again(servers: ServerPool, kind: Kind) -> None:
    server = servers.get(kind, JWT_SECRET=SECRET, JWT_LEEWAY=0)
    token = await server.call("make_token", "restored")
    async with Client(server.url, query=f"jid={token}") as client:
        await client.subscribe(identify("StreamChannel", streams=["restored"]))
    sid = str(client.welcome["sid"])
    expired = jwt.encode({"ext": '{"user":1}', "exp": int(time.time()) - 60}, SECRET)
    for wrong, reason in ((expired, "token_expired"), (token[:-4] + "AAAA", "unauthorized")):
        refused = Client(server.url, sid=sid, query=f"jid={wrong}")
        await refused.open()
        await refused.expect({"type": "disconnect", "reason": reason, "reconnect": False})
        await refused.close()
    async with Client(server.url, sid=sid, query=f"jid={token}") as returned:
        assert returned.welcome["restored"] is True


@pytest.mark.parametrize("options", ["as in the page", "with all levels"])
@pytest.mark.parametrize("command", [each for each in commands() if each.startswith(("uvicorn", "daphne"))])
async def test_no_log_has_a_token(
    command: str, options: str, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.integration.test_server_logs.environment",
        lambda path: environment(path, {"JWT_SECRET": SECRET, "JWT_REQUIRED": True}),
    )
    now = int(time.time())
    tokens = {
        "welcome": jwt.encode({"ext": '{"user":null}', "exp": now + 60}, SECRET),
        "token_expired": jwt.encode({"ext": "{}", "exp": now - 60}, SECRET),
        "unauthorized": jwt.encode({"ext": "{}", "exp": now + 60}, SECRET[::-1]),
    }
    port, log = free_port(), tmp_path / "log"
    with running(OPTIONS[options](command_line(command, port)), database, log, port):
        for expected, token in tokens.items():
            url = f"ws://127.0.0.1:{port}/cable"
            for client in (
                Client(url, query=f"jid={token}"),
                Client(url, headers={"X-JID": token}),
                Client(url, protocols=(EXTENDED, f"anycable-token.{token}")),
            ):
                await client.open()
                frame = await client.expect(lambda frame: frame["type"] in ("welcome", "disconnect"))
                assert expected in (frame["type"], frame.get("reason"))
                await client.close()
    output = log.read_text(errors="replace")
    parts = [part for token in tokens.values() for part in token.split(".")]
    assert [line for line in output.splitlines() if any(part in line for part in parts)] == []
    assert "its token has a wrong signature" in output
