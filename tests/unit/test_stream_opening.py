"""The hub opens a stream for its first subscriber, even while messages arrive."""

from __future__ import annotations

import pytest

from reliable_cable.protocol.positions import StreamPosition

from .hubs import Harness, offsets


async def test_a_message_that_is_announced_after_the_position_was_read_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    position = harness.store.aposition

    async def overtaken(stream: str) -> StreamPosition:
        read = await position(stream)
        harness.hub.deliver(harness.append())
        return read

    monkeypatch.setattr(harness.store, "aposition", overtaken)
    _, log = await harness.subscriber()
    await harness.wait_until_written()
    assert offsets(log) == [1]
