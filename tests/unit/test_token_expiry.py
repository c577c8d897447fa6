"""A connection ends when its token expires. The time of these tests is virtual."""

from __future__ import annotations

import asyncio

import pytest

from reliable_cable.concurrency.tasks import BackgroundTasks
from reliable_cable.hub.token_expiry import MAX_DELAY, TokenExpiry
from reliable_cable.protocol.constants import DisconnectReason
from tests.support.virtual_loop import VirtualLoop

#: The difference between the clock of the host and that of the event loop.
EPOCH = 1_800_000_000.0


class Connection:
    """A connection with a token. It records when and why it ends."""

    def __init__(self, loop: VirtualLoop, seconds: float | None) -> None:
        self._loop = loop
        self.expires_at = None if seconds is None else EPOCH + loop.time() + seconds
        self.ended: list[tuple[float, DisconnectReason]] = []

    async def drain(self, delay: float, reason: DisconnectReason) -> None:
        await asyncio.sleep(delay)
        self.ended.append((self._loop.time(), reason))


class Rig:
    """`TokenExpiry` with a clock that tests can set."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.offset = EPOCH
        self.expiry = loop.call(lambda: TokenExpiry(BackgroundTasks(), lambda: loop.time() + self.offset))

    def connect(self, seconds: float | None) -> Connection:
        connection = Connection(self.loop, seconds)
        self.loop.call(lambda: self.expiry.add(connection))
        return connection


@pytest.fixture
def rig(loop: VirtualLoop) -> Rig:
    return Rig(loop)


@pytest.mark.parametrize("seconds", [0, 1, 3600, 86400 * 30])
def test_a_connection_ends_when_its_token_expires(rig: Rig, seconds: float) -> None:
    began = rig.loop.time()
    connection = rig.connect(seconds)
    rig.loop.run_for(seconds - 0.001) if seconds else None
    assert connection.ended == []
    rig.loop.run_for(0.002)
    ((at, reason),) = connection.ended
    assert at == pytest.approx(began + seconds, abs=0.01)
    assert reason is DisconnectReason.TOKEN_EXPIRED


def test_an_expired_token_ends_the_connection_at_once(rig: Rig) -> None:
    connection = rig.connect(-5)
    rig.loop.run_for(0.001)
    assert len(connection.ended) == 1


def test_connections_without_an_expiry_and_those_that_have_ended_have_no_timer(rig: Rig) -> None:
    connections = [rig.connect(None), rig.connect(5)]
    for each in connections:
        rig.expiry.remove(each)
    assert not rig.expiry._timers
    rig.loop.run_for(10)
    assert [each.ended for each in connections] == [[], []]


@pytest.mark.parametrize("seconds", [2 * MAX_DELAY, 1e300])
def test_timers_are_short(rig: Rig, seconds: float) -> None:
    began = rig.loop.time()
    rig.connect(seconds)
    (timer,) = rig.expiry._timers.values()
    assert timer.when() == pytest.approx(began + MAX_DELAY, abs=1)
    timer.cancel()


def test_a_clock_that_was_set_back(rig: Rig) -> None:
    connection = rig.connect(60)
    rig.offset -= 30
    rig.loop.run_for(60.001)
    assert connection.ended == []
    rig.loop.run_for(30)
    assert len(connection.ended) == 1


def test_a_clock_that_was_set_forward(rig: Rig) -> None:
    """The clock of a host that was suspended also jumps forward, compared with the clock of the event loop."""
    connection = rig.connect(3600)
    rig.loop.run_for(10)
    rig.offset += 3600
    rig.loop.run_for(60)
    assert len(connection.ended) == 1
