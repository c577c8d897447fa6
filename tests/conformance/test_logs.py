"""An attacker can neither fill the log of a server nor hide the errors of other clients in it."""

from __future__ import annotations

import contextlib

import pytest
from websockets.exceptions import ConnectionClosed

from tests.conformance.conftest import Connect
from tests.support.client import identify, unique
from tests.support.server import Server

#: How many frames the attacker sends, and the maximum number of bytes of log that they may cause.
FRAMES, MAX_LOG = 5000, 100_000

#: Functions that send one frame of the attacker, by the kind of attack.
ATTACKS = {
    "broken frames": lambda client, number: client.send_raw("{"),
    "unknown channels": lambda client, number: client.send("subscribe", identify(f"NoChannel{number}")),
    "failing handlers": lambda client, number: client.send(
        "subscribe", identify("RaisingChannel", stream=f"attacked {number}", raises=True)
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_the_log_of_an_attack_is_short_and_has_all_errors_of_others(
    connect: Connect, server: Server, attack: str
) -> None:
    attacker, other = await connect(), await connect()
    identifier = await other.subscribe(identify("RaisingChannel", stream=unique("other")))
    began = len(server.log)
    with contextlib.suppress(ConnectionClosed):
        for number in range(FRAMES):
            await ATTACKS[attack](attacker, number)
    for _ in range(3):
        logged = server.log.count("RuntimeError: fail raised, as the test asked")
        await other.perform(identifier, "fail")
        await other.expect({"identifier": identifier, "message": {"failed": "fail"}})
        assert server.log.count("RuntimeError: fail raised, as the test asked") > logged
    assert len(server.log) - began < MAX_LOG
