"""The fan-out writes in slices, so that other tasks run in between, and keeps the order of messages."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliable_cable.connection.account import Account
from reliable_cable.connection.outbox import Outbox
from reliable_cable.hub import fanout
from reliable_cable.hub.subscriber import SubscriberGroup
from reliable_cable.protocol.events import Event
from reliable_cable.protocol.frames import Frame
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.streams.base import Transient
from tests.support.examples import examples
from tests.support.subscriber import LoneSubscriber
from tests.unit.hubs import Harness, offsets


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    # No pauses, even if the machine is slow.
    set_policy(monkeypatch, budget=2, shortest_pause=math.inf)


def set_policy(monkeypatch: pytest.MonkeyPatch, **numbers: Any) -> None:
    """Replace numbers of the fan-out policy."""
    monkeypatch.setattr(fanout, "POLICY", replace(fanout.POLICY, **numbers))


async def iterate(iterations: int = 100) -> None:
    """Let the event loop run for a number of iterations."""
    for _ in range(iterations):
        await asyncio.sleep(0)


def messages(block: bytes) -> list[Any]:
    """Return the messages of WebSocket frames that were written at once."""
    decoded = []
    while block:
        size, start = block[1], 2
        if size == 126:
            size, start = int.from_bytes(block[2:4], "big"), 4
        decoded.append(json.loads(block[start : start + size]))
        block = block[start + size :]
    return decoded


class FrameClient:
    """A subscriber whose connection takes encoded frames.

    Args:
        harness: the harness of the hub.
        sid: the session id of the connection.
    """

    def __init__(self, harness: Harness, sid: str = "sid") -> None:
        self.blocks: list[bytes] = []

        async def send(message: dict[str, Any]) -> None:
            raise AssertionError("ASGI's send is not used")

        self.outbox = Outbox(send, account=Account(10**6), overflow=lambda: None, write=self.blocks.append)
        self.subscriber = LoneSubscriber(self.outbox, "I", "s", frozenset([sid]), lambda: None)
        self._hub = harness.hub

    async def join(self) -> FrameClient:
        """Subscribe and go live."""
        await self.subscriber.join(self._hub, "s")
        self.subscriber.confirmed = True
        self.subscriber.resume()
        return self

    @property
    def log(self) -> list[Any]:
        """The received messages, one list for each write: offsets, and the data of transient messages."""
        return [[frame.get("offset", frame["message"]) for frame in messages(block)] for block in self.blocks]


async def test_messages_of_one_iteration_are_one_write_but_a_single_subscriber_gets_the_first_at_once() -> None:
    harness = Harness()
    first = await FrameClient(harness).join()
    await harness.publish()
    await iterate()
    for _ in range(4):
        harness.hub.deliver(harness.append())
    harness.hub.deliver(Transient("s", '"t"'))
    harness.hub.deliver(harness.append())
    await iterate()
    others = [await FrameClient(harness).join() for _ in range(5)]
    for _ in range(4):
        harness.hub.deliver(harness.append())
    await iterate()
    assert first.log == [[1], [2], [3, 4, 5, "t", 6], [7, 8, 9, 10]]
    assert [client.log for client in others] == [[[7, 8, 9, 10]]] * 5


async def test_the_messages_and_characters_of_one_write_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    set_policy(monkeypatch, batch_messages=3, batch_size=100)
    harness = Harness()
    client = await FrameClient(harness).join()
    await harness.publish()
    await iterate()
    for data in ('"a"', '"b"', '"c"', '"d"', '"e"', f'"{"f" * 90}"', '"g"', f'"{"h" * 300}"', '"i"'):
        harness.hub.deliver(harness.append(data))
    await iterate()
    assert client.log == [[1], [2], [3, 4, 5], [6, 7, 8], [9], [10]]


async def test_a_stream_pauses_for_as_long_as_its_last_batch_took_and_then_sends_pending_messages_in_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_policy(monkeypatch, shortest_pause=0.002)
    now = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    harness = Harness()
    clients = [await FrameClient(harness).join() for _ in range(5)]
    await harness.publish()
    await iterate()
    assert clients[4].log == [[1]]
    harness.hub.deliver(harness.append())
    while len(clients[4].log) < 2:
        now += 0.003
        await asyncio.sleep(0)
    await iterate()
    for _ in range(3):
        harness.hub.deliver(harness.append())
        await iterate()
    assert [client.log for client in clients] == [[[1], [2]]] * 5
    now += 0.005
    await iterate()
    assert [client.log for client in clients] == [[[1], [2]]] * 5
    now += 0.002
    await iterate()
    assert [client.log for client in clients] == [[[1], [2], [3, 4, 5]]] * 5


@pytest.mark.parametrize("subscriber_count", [1, 5], ids=["at once", "in slices"])
async def test_subscribers_to_which_a_message_could_not_be_sent_are_told_of_a_loss_and_get_the_next_one(
    monkeypatch: pytest.MonkeyPatch, subscriber_count: int
) -> None:
    harness = Harness()
    logs = [(await harness.subscriber())[1] for _ in range(subscriber_count)]
    await harness.publish()
    await iterate()
    with monkeypatch.context() as patched:
        patched.setattr(SubscriberGroup, "encode", lambda *args: 1 / 0)
        await harness.publish()
        await iterate()
    await harness.publish()
    await iterate()
    assert [offsets(log) for log in logs] == [[1, "lost", 3]] * subscriber_count


async def test_each_subscriber_gets_the_messages_of_a_batch_that_do_not_exclude_it_and_follow_its_join() -> None:
    harness = Harness()
    first, second = await FrameClient(harness, "first").join(), await FrameClient(harness, "second").join()
    await harness.publish()
    await iterate()
    harness.hub.deliver(harness.append())
    late = FrameClient(harness, "late")
    harness.hub.deliver(harness.append(exclude="first"))
    await late.join()
    harness.hub.deliver(harness.append())
    harness.hub.deliver(Transient("s", '"t"', exclude="second"))
    await iterate()
    assert first.log == [[1], [2], [4], ["t"]]
    assert second.log == [[1], [2], [3], [4]]
    assert late.log == [[4], ["t"]]


async def test_a_large_message_is_sent_to_fewer_subscribers_in_each_iteration() -> None:
    harness = Harness()
    logs = [(await harness.subscriber())[1] for _ in range(4)]
    await harness.publish()
    await iterate()
    harness.hub.deliver(harness.append(f'"{"x" * fanout.POLICY.unit}"'))
    sent = []
    while sum(map(len, logs)) < 8:
        sent.append(sum(map(len, logs)) - 4)
        await asyncio.sleep(0)
    assert sent == [0, 1, 2, 3]


async def test_subscribers_with_different_identifiers_share_an_iteration() -> None:
    harness = Harness()
    logs = [(await harness.subscriber(str(number)))[1] for number in range(6)]
    await harness.publish()
    await iterate()
    harness.hub.deliver(harness.append())
    sent = []
    while sum(map(len, logs)) < 12:
        sent.append(sum(map(len, logs)) - 6)
        await asyncio.sleep(0)
    assert sent == [0, 2, 4]


async def test_other_tasks_run_between_slices() -> None:
    harness = Harness()
    logs = [(await harness.subscriber())[1] for _ in range(7)]
    await harness.publish()
    await iterate()
    harness.hub.deliver(harness.append())
    sent = []
    while sum(map(len, logs)) < 14:
        sent.append(sum(map(len, logs)) - 7)
        await asyncio.sleep(0)
    assert sent == [0, 2, 4, 6]


async def test_messages_that_arrive_between_slices_are_sent_after_the_current_batch() -> None:
    harness = Harness()
    logs = [(await harness.subscriber())[1] for _ in range(5)]
    await harness.announce()
    await asyncio.sleep(0)
    await harness.announce()
    harness.hub.deliver(Transient("s", '"t"'))
    await harness.announce()
    await iterate()
    for log in logs:
        assert [frame.get("offset", "t") for frame in log] == [1, 2, "t", 3]


async def test_a_subscriber_that_leaves_between_slices_gets_nothing_and_one_that_joins_gets_the_next_message() -> None:
    harness = Harness()
    subscribers = [await harness.subscriber() for _ in range(6)]
    await harness.publish()
    await iterate()
    harness.hub.deliver(harness.append())
    await asyncio.sleep(0)
    subscribers[5][0].leave(harness.hub)
    _, late = await harness.subscriber()
    await iterate()
    await harness.publish()
    await iterate()
    assert [offsets(log) for _, log in subscribers] == [[1, 2, 3]] * 5 + [[1]]
    assert offsets(late) == [3]


async def test_a_loss_between_slices_is_reported_to_all_subscribers_and_no_older_message_follows() -> None:
    harness = Harness()
    logs = [(await harness.subscriber())[1] for _ in range(6)]
    await harness.announce()
    await asyncio.sleep(0)
    harness.store.forget("s")
    await harness.announce()
    await iterate()
    for log in logs:
        assert offsets(log) in (["lost", 1], [1, "lost", 1])
    assert [1, "lost", 1] in [offsets(log) for log in logs]


STEPS = ["publish", "publish", "iterate", "iterate", "join", "leave", "replay", "go live", "whisper", "pause", "resume"]


@settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(STEPS), max_size=40), data=st.data())
def test_whatever_happens_between_slices_each_subscriber_gets_each_message_once_and_in_order(
    steps: list[str], data: st.DataObject
) -> None:
    async def scenario() -> None:
        harness = Harness()
        clients: list[FrameClient] = []
        #: For each client, the messages that it must receive: the offsets of stored messages, and the data of transient
        #: ones.
        sent: dict[FrameClient, list[int | str]] = {}
        replayed: set[FrameClient] = set()
        whispers = count()

        async def join() -> None:
            client = await FrameClient(harness, f"sid{len(clients) % 3}").join()
            clients.append(client)
            sent[client] = []

        async def send(whisper: bool) -> None:
            exclude = data.draw(st.sampled_from(["", "", "sid0"]))
            message: int | str
            if whisper:
                message = f"t{next(whispers)}"
                harness.hub.deliver(Transient("s", json.dumps(message), exclude))
            else:
                message = (await harness.announce(exclude=exclude)).entry.offset
            for client in clients:
                if not client.subscriber.closed and exclude not in client.subscriber.sids:
                    sent[client].append(message)

        async def replay(client: FrameClient) -> None:
            """Catch up, as a subscription does when the client requests its history."""
            replayed.add(client)
            client.subscriber.suspend()
            await asyncio.sleep(0)
            client.outbox.resume()
            while client.subscriber.is_behind:
                assert await harness.hub.catch_up.send_page(client.subscriber.stream, client.subscriber)
            client.subscriber.resume()

        for _ in range(4):
            await join()
        for step in steps:
            client = clients[data.draw(st.integers(0, len(clients) - 1))]
            if step in ("publish", "whisper"):
                await send(step == "whisper")
            elif step == "iterate":
                await asyncio.sleep(0)
            elif step == "join":
                await join()
            elif client.subscriber.closed:
                continue
            elif step == "pause":
                client.outbox.pause()
            elif step == "resume":
                client.outbox.resume()
            elif step == "leave":
                client.subscriber.leave(harness.hub)
            elif step == "go live":  # as when the subscription starts another stream
                client.subscriber.resume()
            else:
                await replay(client)
        for client in clients:
            client.outbox.resume()
        await iterate()
        for client in clients:
            expected = sent[client]
            # A client may also get a whisper that was sent just before the client joined.
            received = [item for block in client.log for item in block if isinstance(item, int) or item in expected]
            if client in replayed:  # the order of whispers and replayed messages may differ
                received = [item for item in received if isinstance(item, int)]
                expected = [item for item in expected if isinstance(item, int)]
            if client.subscriber.closed:  # the client left before the last messages were sent
                expected = expected[: len(received)]
            assert received == expected

    asyncio.run(scenario())


async def test_events_count_one_by_one_because_each_reader_gets_ids_of_its_own() -> None:
    batch = fanout.Batch([Entry(number, '"x"') for number in range(1, 101)], 1, "e")
    assert fanout.EncodedBatch(batch, SubscriberGroup("i", "s", Frame)).cost == 1
    assert fanout.EncodedBatch(batch, SubscriberGroup("i", "s", Event)).cost == 100
    large = fanout.Batch([Entry(1, '"' + 5000 * "x" + '"')], 1, "e")
    assert fanout.EncodedBatch(large, SubscriberGroup("i", "s", Event)).cost == 2
