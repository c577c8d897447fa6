"""A restore brings back every change of state of which the client has seen a result, such as a transmission."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from reliable_cable import Channel, StoreError, action, state
from reliable_cable.consumer import get_hub
from reliable_cable.hub import session_writer
from reliable_cable.stores.engine import get_engine
from tests.support.records import load_record

from .wire import Client, connection_of, identifier, registered


class Counter(Channel, abstract=True):
    count = state(default=0)

    async def resubscribed(self) -> None:
        self.transmit({"count": self.count})

    @action
    async def increase(self) -> None:
        self.count += 1
        self.transmit({"count": self.count})

    @action
    async def fail(self) -> None:
        raise ValueError("broken action")

    async def handle_error(self, error: Exception, action: str) -> None:
        self.count += 1
        self.transmit({"count": self.count})

    @action
    async def follow(self) -> None:
        self.stream_from("news")
        self.transmit({"following": True})


COUNTER = identifier("Counter")


class Outage:
    """Makes the session store fail from `begin` to `end`."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        self.attempted = asyncio.Event()

    def begin(self, timeout: float = session_writer.SAVE_TIMEOUT) -> None:
        """Begin the outage. Transmissions wait up to `timeout` seconds for the session to be saved."""

        async def fail(*args: Any) -> None:
            self.attempted.set()
            raise StoreError("down")

        self._patch.setattr(session_writer, "SAVE_TIMEOUT", timeout)
        self._patch.setattr(get_engine().sessions, "asave", fail)
        self._patch.setattr(get_engine().sessions, "atouch", fail)

    def end(self) -> None:
        self._patch.undo()


@pytest.fixture(autouse=True)
async def _counter(settings: Any) -> AsyncIterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    with registered(Counter=Counter):
        yield


@pytest.fixture
def outage() -> Iterator[Outage]:
    outage = Outage()
    yield outage
    outage.end()


async def expect_disconnect(client: Client) -> None:
    """Expect a `disconnect` after which the client forgets its session and reconnects."""
    assert await client.receive() == {"type": "disconnect", "reason": "remote", "reconnect": True}
    assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}


async def count_to_one(client: Client) -> None:
    """Subscribe, and call the action that increases the count."""
    await client.subscribe(COUNTER)
    await client.perform(COUNTER, "increase")
    assert (await client.receive())["message"] == {"count": 1}


@pytest.mark.parametrize("name", ["increase", "fail", "follow"])
async def test_a_client_whose_session_cannot_be_saved_is_disconnected_and_sees_no_effect(
    name: str, outage: Outage
) -> None:
    async with Client() as client:
        await count_to_one(client)
        outage.begin(timeout=0.05)
        await client.perform(COUNTER, name)
        await expect_disconnect(client)
    outage.end()
    # If this server were killed, another server would load this record.
    record = await load_record(get_engine().sessions, client.sid, {"user": ""})
    assert record is None or record.data["subscriptions"][0]["state"] == {"count": 1}


async def test_the_effect_is_seen_as_soon_as_the_session_is_saved(
    outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_writer, "BACKGROUND_RETRY_DELAY", 0.001)
    async with Client() as client:
        await count_to_one(client)
        outage.begin()
        await client.perform(COUNTER, "increase")
        await outage.attempted.wait()
        assert await client.quiet(), "the effect was not delayed"
        outage.end()
        assert (await client.receive())["message"] == {"count": 2}
        record = await load_record(get_engine().sessions, client.sid, {"user": ""})
        assert record is not None
        assert record.data["subscriptions"][0]["state"] == {"count": 2}


async def test_a_client_whose_unsubscribe_cannot_be_saved_forgets_its_session(
    outage: Outage,
) -> None:
    async with Client() as client:
        await count_to_one(client)
        outage.begin(timeout=0.05)
        await client.send("unsubscribe", COUNTER)
        await expect_disconnect(client)


async def test_the_effect_is_not_delayed_if_the_session_was_never_saved(outage: Outage) -> None:
    async with Client() as first:
        await first.subscribe(COUNTER)
        outage.begin()
        hub = get_hub()
        hub.sessions.changed(connection_of(first))
        await outage.attempted.wait()
        async with Client() as client:
            await count_to_one(client)
