"""The listeners of an event loop share one connection for notifications."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from unittest import mock

import pytest

from reliable_cable.concurrency.tasks import cancel
from reliable_cable.conf import CableSettings
from reliable_cable.stores.database import shared_receiver
from reliable_cable.stores.database.shared_receiver import PRESENCE, SharedReceiver

from .wire import until


class FakeReceiver:
    """Replaces the receiver that has a connection. `made` lists all objects, and `running` those that are running."""

    made: list[FakeReceiver]
    running: list[FakeReceiver]

    def __init__(
        self,
        settings: CableSettings,
        received: Callable[[str], None],
        changed: Callable[[], None],
        probe: Callable[[str], None],
    ) -> None:
        self.received, self.changed, self.probe = received, changed, probe
        self.working = False
        self.made.append(self)

    async def run(self) -> None:
        self.running.append(self)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.running.remove(self)


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    FakeReceiver.made, FakeReceiver.running = [], []
    with mock.patch.object(shared_receiver, "NotificationReceiver", FakeReceiver):
        yield


class Listener:
    """A listener that records its payloads, its calls of `changed` and its probes."""

    def __init__(self, settings: CableSettings, topic: str = "") -> None:
        self.payloads: list[str] = []
        self.probes: list[str] = []
        self.changes = 0
        self.receiver = SharedReceiver(settings, topic, self.payloads.append, self._changed, self.probes.append)
        self.task = asyncio.create_task(self.receiver.run())

    def _changed(self) -> None:
        self.changes += 1


async def test_each_listener_gets_the_payloads_of_its_topic() -> None:
    settings = CableSettings()
    streams, presence = Listener(settings), Listener(settings, PRESENCE)
    await until(lambda: FakeReceiver.running)
    (shared,) = FakeReceiver.made
    shared.received("a1 message")
    shared.received(f"{PRESENCE}1 join")
    assert streams.payloads == ["a1 message"]
    assert presence.payloads == [f"{PRESENCE}1 join"]
    await cancel(streams.task, presence.task)


async def test_the_connection_is_closed_after_the_last_listener() -> None:
    settings = CableSettings()
    first, second = Listener(settings), Listener(settings, PRESENCE)
    await until(lambda: FakeReceiver.running)
    (shared,) = FakeReceiver.made
    shared.working = True
    shared.changed()
    assert (first.changes, second.changes) == (1, 1)
    await cancel(first.task)
    assert not first.receiver.working
    assert second.receiver.working
    shared.probe("?1")
    assert (first.probes, second.probes) == ([], ["?1"])
    late = Listener(settings)
    await until(lambda: late.changes)  # it may have missed notifications before it began to receive them
    assert late.receiver.working
    await cancel(second.task, late.task)
    assert not FakeReceiver.running
    again = Listener(settings)
    await until(lambda: FakeReceiver.running)
    assert len(FakeReceiver.made) == 2
    await cancel(again.task)


async def test_listeners_with_other_settings_have_another_connection() -> None:
    listeners = [Listener(CableSettings()), Listener(CableSettings())]
    await until(lambda: len(FakeReceiver.running) == 2)
    await cancel(listeners[0].task)
    assert len(FakeReceiver.running) == 1
    await cancel(listeners[1].task)
