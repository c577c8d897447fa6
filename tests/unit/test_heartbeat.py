"""The heartbeat pings each connection at its own interval, with one timer for all connections."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from reliable_cable.hub.heartbeat import TICK, Heartbeat


class Connection:
    def __init__(self, interval: float, limit: int = 1000) -> None:
        self.ping_interval = interval
        self.ping_due = 0
        self.limit = limit
        self.times: list[float] = []

    def ping(self, frame: str) -> bool:
        assert frame.startswith('{"type":"ping","message":')
        self.times.append(asyncio.get_running_loop().time())
        return len(self.times) < self.limit


class LoopTime:
    """The clock of the event loop. It moves only when a test calls `run`, which calls due timers in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, asyncio.TimerHandle]] = []
        self._loop = loop
        monkeypatch.setattr(loop, "time", lambda: self.now)
        monkeypatch.setattr(loop, "call_at", self._call_at)

    def _call_at(self, when: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self._loop)
        self.timers.append((when, handle))
        return handle

    @property
    def waiting(self) -> int:
        return sum(not handle.cancelled() for _, handle in self.timers)

    def run(self, until: float) -> None:
        while True:
            self.timers = [(when, handle) for when, handle in self.timers if not handle.cancelled()]
            due = min(self.timers, default=None, key=lambda timer: timer[0])
            if due is None or due[0] > until:
                break
            self.timers.remove(due)
            self.now = max(self.now, due[0])
            due[1]._run()
        self.now = max(self.now, until)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> LoopTime:
    return LoopTime(asyncio.get_running_loop(), monkeypatch)


async def test_each_connection_is_pinged_at_its_interval(clock: LoopTime) -> None:
    heartbeat = Heartbeat()
    fast, slow = Connection(1), Connection(7)
    heartbeat.add(fast)
    heartbeat.add(slow)
    clock.run(clock.now + 70)
    for connection in (fast, slow):
        first = connection.times[0] - 1000
        assert 0.5 * connection.ping_interval - TICK <= first <= 1.5 * connection.ping_interval + TICK
        gaps = [later - sooner for sooner, later in zip(connection.times, connection.times[1:], strict=False)]
        assert gaps == pytest.approx([connection.ping_interval] * len(gaps), abs=TICK + 1e-6)
    assert 69 <= len(fast.times) <= 71


async def test_a_ping_carries_the_time_of_the_given_clock(clock: LoopTime) -> None:
    frames: list[str] = []

    class Listening(Connection):
        def ping(self, frame: str) -> bool:
            frames.append(frame)
            return False

    heartbeat = Heartbeat(lambda: 5.5)
    heartbeat.add(Listening(1))
    clock.run(clock.now + 2)
    assert [json.loads(frame) for frame in frames] == [{"type": "ping", "message": 5}]


async def test_first_pings_are_spread(clock: LoopTime) -> None:
    heartbeat = Heartbeat()
    connections = [Connection(10, limit=1) for _ in range(200)]
    for connection in connections:
        heartbeat.add(connection)
    assert clock.waiting == 1
    clock.run(clock.now + 20)
    assert len({round(connection.times[0]) for connection in connections}) > 7


async def test_a_removed_connection_is_not_pinged_and_no_timer_runs_without_connections(clock: LoopTime) -> None:
    heartbeat = Heartbeat()
    removed, finished = Connection(2), Connection(2, limit=1)
    heartbeat.add(removed)
    heartbeat.add(finished)
    heartbeat.remove(removed)
    heartbeat.remove(Connection(2))
    clock.run(clock.now + 10)
    assert (removed.times, len(finished.times)) == ([], 1)
    assert clock.waiting == 0
    heartbeat.add(last := Connection(2))
    assert clock.waiting == 1
    heartbeat.remove(last)
    assert clock.waiting == 0


async def test_a_blocked_event_loop_delays_pings_and_drops_none(clock: LoopTime) -> None:
    heartbeat = Heartbeat()
    connections = [Connection(3) for _ in range(50)]
    for connection in connections:
        heartbeat.add(connection)
    clock.now += 60
    clock.run(clock.now + 5)
    assert all(2 <= len(connection.times) <= 3 for connection in connections)


async def test_a_connection_whose_ping_fails_does_not_affect_the_others(
    clock: LoopTime, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Connection):
        def ping(self, frame: str) -> bool:
            raise OSError("broken")

    heartbeat = Heartbeat()
    heartbeat.add(Broken(1))
    heartbeat.add(healthy := Connection(1))
    clock.run(clock.now + 10)
    assert len(healthy.times) >= 9
    assert "could not be pinged" in caplog.text


async def test_the_heartbeat_keeps_no_reference_to_a_removed_connection(clock: LoopTime) -> None:
    heartbeat = Heartbeat()
    heartbeat.add(connection := Connection(60))
    heartbeat.remove(connection)
    assert not [referrer for referrer in gc.get_referrers(connection) if isinstance(referrer, set)]
