"""History requests that wait for the same replay are merged, so that the server stores only one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from reliable_cable.broadcasting import abroadcast

from .test_races import ROOM, Gate, Room, history_from, received
from .wire import Client, connection_of, registered, run_event_loop, until


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    with registered(Room=Room):
        yield


async def test_history_requests_that_wait_for_another_one_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 4):
        await abroadcast("room", number)
    async with Client() as client:
        await client.subscribe(ROOM)
        gate = Gate(monkeypatch, "aread")
        await client.send("history", ROOM, history=await history_from(2))
        await gate.called.wait()
        for offset in (1, 1, 1):
            await client.send("history", ROOM, history=await history_from(offset))
        await run_event_loop()
        gate.open.set()
        assert await received(client) == [3, "confirm_history", 2, 3, *["confirm_history"] * 3]
        await abroadcast("room", 4)
        assert await received(client) == [4]


async def test_a_flood_of_history_requests_keeps_nothing_but_positions_of_the_own_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await abroadcast("room", 1)
    async with Client() as client:
        await client.subscribe(ROOM)
        history = await history_from(0)
        history["streams"] |= {f"other {number}": {"epoch": "e" * 100, "offset": 1} for number in range(300)}
        gate = Gate(monkeypatch, "aread")
        for _ in range(100):
            await client.send("history", ROOM, history=history)
        await gate.called.wait()
        await until(lambda: client.communicator.input_queue.empty())
        await run_event_loop()
        (subscription,) = connection_of(client).subscriptions.values()
        request = subscription._replay._request  # type: ignore[attr-defined]
        assert list(request.streams) == ["room"]
        gate.open.set()
        answers = await received(client)
        assert answers.count("confirm_history") == 100
        assert answers.count(1) == 2
