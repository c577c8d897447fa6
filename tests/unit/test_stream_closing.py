"""The hub closes a stream after its last subscriber has left."""

from __future__ import annotations

import asyncio

import pytest

from reliable_cable.exceptions import StoreError

from .hubs import Harness, offsets


async def test_a_stream_without_subscribers_is_closed() -> None:
    harness = Harness()
    subscriber, log = await harness.subscriber()
    subscriber.leave(harness.hub)
    await harness.publish()
    assert log == []
    subscriber, log = await harness.subscriber()
    await harness.publish()
    assert offsets(log) == [2]
    subscriber.leave(harness.hub)


async def test_a_stream_is_closed_even_if_its_presence_cannot_be_closed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(stream: str) -> None:
        raise StoreError("down")

    harness = Harness()
    subscriber, _ = await harness.subscriber()
    assert harness.store.subscribed == {"s"}
    monkeypatch.setattr(harness.hub.presence, "close", fail)
    subscriber.leave(harness.hub)
    await asyncio.wait(harness.hub._closing.values())
    assert harness.store.subscribed == set()
    assert "The stream 's' could not be closed" in caplog.text
