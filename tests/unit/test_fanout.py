"""What goes to many goes out in slices: others have their turn in between, and nobody's order suffers."""

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

from reliable_cable.connection.outbox import Outbox
from reliable_cable.hub import fanout
from reliable_cable.hub.subscriber import SubscriberGroup
from reliable_cable.stores.streams.base import Transient
from tests.support.subscriber import LoneSubscriber
from tests.unit.hubs import Harness, offsets


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine must not cause pauses.
    set_policy(monkeypatch, budget=2, shortest_pause=math.inf)


def set_policy(monkeypatch: pytest.MonkeyPatch, **numbers: Any) -> None:
    """Change numbers of the fan-out policy."""
    monkeypatch.setattr(fanout, "POLICY", replace(fanout.POLICY, **numbers))


async def turns(count: int = 100) -> None:
    """Let the event loop run."""
    for _ in range(count):
        await asyncio.sleep(0)


def messages(block: bytes) -> list[Any]:
    """Return the messages of WebSocket frames that were written at once."""
    found = []
    while block:
        size, start = block[1], 2
        if size == 126:
            size, start = int.from_bytes(block[2:4], "big"), 4
        found.append(json.loads(block[start : start + size]))
        block = block[start + size :]
    return found


class Written:
    """A live reader whose connection takes frames.

    Args:
        harness: its hub's.
        sid: of its connection.
    """

    def __init__(self, harness: Harness, sid: str = "sid") -> None:
        self.blocks: list[bytes] = []

        async def send(message: dict[str, Any]) -> None:
            raise AssertionError("it takes frames")

        self.outbox = Outbox(send, limit=10**6, overflow=lambda: None, write=self.blocks.append)
        self.reader = LoneSubscriber(self.outbox, "I", "s", frozenset([sid]), lambda: None)
        self._hub = harness.hub

    async def come(self) -> Written:
        """Begin to read."""
        await self.reader.join(self._hub, "s")
        self.reader.confirmed = True
        self.reader.resume()
        return self

    @property
    def log(self) -> list[Any]:
        """What it got, write by write: offsets, and the data of what has none."""
        return [[one.get("offset", one["message"]) for one in messages(block)] for block in self.blocks]


async def test_what_comes_in_one_turn_goes_out_in_one_write_but_for_the_first() -> None:
    harness = Harness()
    few = [await Written(harness).come()]
    await harness.publish()
    await turns()
    for _ in range(4):
        harness.hub.deliver(harness.append())
    harness.hub.deliver(Transient("s", '"t"'))
    harness.hub.deliver(harness.append())
    await turns()
    many = [await Written(harness).come() for _ in range(5)]
    for _ in range(4):
        harness.hub.deliver(harness.append())
    await turns()
    assert few[0].log == [[1], [2], [3, 4, 5, "t", 6], [7, 8, 9, 10]]
    assert [one.log for one in many] == [[[7, 8, 9, 10]]] * 5


async def test_one_write_has_so_many_messages_and_characters_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    set_policy(monkeypatch, batch_messages=3, batch_size=100)
    harness = Harness()
    one = await Written(harness).come()
    await harness.publish()
    await turns()
    for data in ('"a"', '"b"', '"c"', '"d"', '"e"', f'"{"f" * 90}"', '"g"', f'"{"h" * 300}"', '"i"'):
        harness.hub.deliver(harness.append(data))
    await turns()
    assert one.log == [[1], [2], [3, 4, 5], [6, 7, 8], [9], [10]]


async def test_a_stream_that_kept_the_loop_busy_rests_as_long_and_what_comes_meanwhile_goes_out_in_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_policy(monkeypatch, shortest_pause=0.002)
    now = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    harness = Harness()
    here = [await Written(harness).come() for _ in range(5)]
    await harness.publish()
    await turns()
    assert here[4].log == [[1]]
    harness.hub.deliver(harness.append())
    while len(here[4].log) < 2:
        now += 0.003
        await asyncio.sleep(0)
    await turns()
    for _ in range(3):
        harness.hub.deliver(harness.append())
        await turns()
    assert [one.log for one in here] == [[[1], [2]]] * 5
    now += 0.005
    await turns()
    assert [one.log for one in here] == [[[1], [2]]] * 5
    now += 0.002
    await turns()
    assert [one.log for one in here] == [[[1], [2], [3, 4, 5]]] * 5


@pytest.mark.parametrize("readers_here", [1, 5], ids=["at once", "in slices"])
async def test_where_sending_fails_everybody_is_told_and_gets_what_comes_next(
    monkeypatch: pytest.MonkeyPatch, readers_here: int
) -> None:
    harness = Harness()
    logs = [(await harness.subscriber())[1] for _ in range(readers_here)]
    await harness.publish()
    await turns()
    with monkeypatch.context() as patched:
        patched.setattr(SubscriberGroup, "encode", lambda *args: 1 / 0)
        await harness.publish()
        await turns()
    await harness.publish()
    await turns()
    assert [offsets(log) for log in logs] == [[1, "lost", 3]] * readers_here


async def test_of_what_goes_out_together_everybody_gets_what_is_for_him() -> None:
    harness = Harness()
    here, other = await Written(harness, "here").come(), await Written(harness, "other").come()
    await harness.publish()
    await turns()
    harness.hub.deliver(harness.append())
    late = Written(harness, "late")
    harness.hub.deliver(harness.append(exclude="here"))
    await late.come()
    harness.hub.deliver(harness.append())
    harness.hub.deliver(Transient("s", '"t"', exclude="other"))
    await turns()
    assert here.log == [[1], [2], [4], ["t"]]
    assert other.log == [[1], [2], [3], [4]]
    assert late.log == [[4], ["t"]]


async def test_of_what_is_large_fewer_are_sent_in_one_turn() -> None:
    harness = Harness()
    logs = [(await harness.subscriber())[1] for _ in range(4)]
    await harness.publish()
    await turns()
    harness.hub.deliver(harness.append(f'"{"x" * fanout.POLICY.unit}"'))
    seen = []
    while sum(map(len, logs)) < 8:
        seen.append(sum(map(len, logs)) - 4)
        await asyncio.sleep(0)
    assert seen == [0, 1, 2, 3]


async def test_readers_of_different_identifiers_share_a_turn() -> None:
    harness = Harness()
    logs = [(await harness.subscriber(str(number)))[1] for number in range(6)]
    await harness.publish()
    await turns()
    harness.hub.deliver(harness.append())
    seen = []
    while sum(map(len, logs)) < 12:
        seen.append(sum(map(len, logs)) - 6)
        await asyncio.sleep(0)
    assert seen == [0, 2, 4]


async def test_others_have_their_turn_between_slices() -> None:
    harness = Harness()
    logs = [(await harness.subscriber())[1] for _ in range(7)]
    await harness.publish()
    await turns()
    harness.hub.deliver(harness.append())
    seen = []
    while sum(map(len, logs)) < 14:
        seen.append(sum(map(len, logs)) - 7)
        await asyncio.sleep(0)
    assert seen == [0, 2, 4, 6]


async def test_messages_that_come_meanwhile_wait_for_their_turn() -> None:
    harness = Harness()
    logs = [(await harness.subscriber())[1] for _ in range(5)]
    await harness.publish()
    await asyncio.sleep(0)
    await harness.publish()
    harness.hub.deliver(Transient("s", '"t"'))
    await harness.publish()
    await turns()
    for log in logs:
        assert [frame.get("offset", "t") for frame in log] == [1, 2, "t", 3]


async def test_who_leaves_meanwhile_gets_no_more_and_who_comes_gets_what_comes_next() -> None:
    harness = Harness()
    pairs = [await harness.subscriber() for _ in range(6)]
    await harness.publish()
    await turns()
    harness.hub.deliver(harness.append())
    await asyncio.sleep(0)
    pairs[5][0].leave(harness.hub)
    _, late = await harness.subscriber()
    await turns()
    await harness.publish()
    await turns()
    assert [offsets(log) for _, log in pairs] == [[1, 2, 3]] * 5 + [[1]]
    assert offsets(late) == [3]


async def test_a_loss_meanwhile_is_told_to_all_and_nothing_older_follows() -> None:
    harness = Harness()
    logs = [(await harness.subscriber())[1] for _ in range(6)]
    await harness.publish()
    await asyncio.sleep(0)
    harness.store.forget("s")
    await harness.publish()
    await turns()
    for log in logs:
        assert offsets(log) in (["lost", 1], [1, "lost", 1])
    assert [1, "lost", 1] in [offsets(log) for log in logs]


STEPS = ["publish", "publish", "turn", "turn", "join", "leave", "replay", "settle", "whisper", "pause", "resume"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(STEPS), max_size=40), data=st.data())
def test_whatever_happens_between_slices_every_reader_gets_each_message_once_in_order(
    steps: list[str], data: st.DataObject
) -> None:
    async def scenario() -> None:
        harness = Harness()
        here: list[Written] = []
        #: What was sent while each was there, in order: offsets, and texts of what has none.
        sent: dict[Written, list[int | str]] = {}
        replayed: set[Written] = set()
        whispers = count()

        async def join() -> None:
            one = await Written(harness, f"sid{len(here) % 3}").come()
            here.append(one)
            sent[one] = []

        async def send(whisper: bool) -> None:
            exclude = data.draw(st.sampled_from(["", "", "sid0"]))
            what: int | str
            if whisper:
                what = f"t{next(whispers)}"
                harness.hub.deliver(Transient("s", json.dumps(what), exclude))
            else:
                what = (await harness.publish(exclude=exclude)).entry.offset
            for one in here:
                if not one.reader.closed and exclude not in one.reader.sids:
                    sent[one].append(what)

        async def replay(one: Written) -> None:
            """As a subscription does on a client's request."""
            replayed.add(one)
            one.reader.suspend()
            await asyncio.sleep(0)
            one.outbox.resume()
            while one.reader.is_behind:
                assert await harness.hub.catch_up.send_page(one.reader.stream, one.reader)
            one.reader.resume()

        for _ in range(4):
            await join()
        for step in steps:
            one = here[data.draw(st.integers(0, len(here) - 1))]
            if step in ("publish", "whisper"):
                await send(step == "whisper")
            elif step == "turn":
                await asyncio.sleep(0)
            elif step == "join":
                await join()
            elif one.reader.closed:
                continue
            elif step == "pause":
                one.outbox.pause()
            elif step == "resume":
                one.outbox.resume()
            elif step == "leave":
                one.reader.leave(harness.hub)
            elif step == "settle":  # as when its subscription starts another stream
                one.reader.resume()
            else:
                await replay(one)
        for one in here:
            one.outbox.resume()
        await turns()
        for one in here:
            wanted = sent[one]
            # A whisper that was on its way when it came is no harm.
            got = [what for block in one.log for what in block if isinstance(what, int) or what in wanted]
            if one in replayed:  # what has no position may come after the replay
                got = [what for what in got if isinstance(what, int)]
                wanted = [what for what in wanted if isinstance(what, int)]
            if one.reader.closed:  # it left before it was sent the last ones
                wanted = wanted[: len(got)]
            assert got == wanted

    asyncio.run(scenario())
