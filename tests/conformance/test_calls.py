"""Calls: actions whose client asks for the result (see Protocol: Calls)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import BASE, EXTENDED, identify, unique
from tests.support.server import Server

ANSWERS = identify("AnswerChannel")


@pytest.mark.parametrize("protocol", [EXTENDED, BASE])
async def test_calls_are_answered_in_their_order(connect: Connect, protocol: str) -> None:
    client = await connect(protocols=[protocol])
    await client.subscribe(ANSWERS)
    calls: dict[str, dict[str, Any]] = {
        "double": {"result": 42},
        "fail": {"error": "failed"},
        "keys": {"result": ["action", "number"]},
        "refuse": {"error": "refused"},
        "missing": {"error": "unknown_action"},
    }
    for name in calls:
        await client.perform(ANSWERS, name, number=21, **{"$call": name})
        await client.perform(ANSWERS, name, number=21)
    for name, outcome in calls.items():
        assert await client.next() == {"identifier": ANSWERS, "message": {"$answer": name, **outcome}}
    await client.nothing()


async def test_the_answer_to_a_call_of_a_lost_connection_is_not_sent_to_the_next_one(
    connect: Connect, server: Server
) -> None:
    gate = unique("gate")
    client = await connect()
    await client.subscribe(ANSWERS)
    await client.perform(ANSWERS, "wait", gate=gate, **{"$call": "lost"})
    await server.call("wait_at_gate", gate, 1)
    await client.cut()
    again = await connect(sid=client.sid)
    assert again.welcome["restored_ids"] == [ANSWERS]
    await server.call("open_gate", gate)
    await again.perform(ANSWERS, "double", number=1, **{"$call": "next"})
    await again.expect({"identifier": ANSWERS, "message": {"$answer": "next", "result": 2}})
    await again.nothing()
