"""What goes to many goes out in slices: others have their turn in between, and nobody's order suffers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliable_cable import readers
from reliable_cable.streams.base import Transient
from tests.unit.test_hub import Harness, offsets


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "SLICE", 2)


async def turns(count: int = 100) -> None:
    """Let the event loop run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_others_have_their_turn_between_slices() -> None:
    harness = Harness()
    logs = [(await harness.reader())[1] for _ in range(7)]
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
    logs = [(await harness.reader())[1] for _ in range(5)]
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
    pairs = [await harness.reader() for _ in range(6)]
    await harness.publish()
    await turns()
    harness.hub.deliver(harness.append())
    await asyncio.sleep(0)
    harness.hub.remove(pairs[5][0])
    _, late = await harness.reader()
    await turns()
    await harness.publish()
    await turns()
    assert [offsets(log) for _, log in pairs] == [[1, 2, 3]] * 5 + [[1]]
    assert offsets(late) == [3]


async def test_a_loss_meanwhile_is_told_to_all_and_nothing_older_follows() -> None:
    harness = Harness()
    logs = [(await harness.reader())[1] for _ in range(6)]
    await harness.publish()
    await asyncio.sleep(0)
    harness.store.forget("s")
    await harness.publish()
    await turns()
    for log in logs:
        assert offsets(log) in (["lost", 1], [1, "lost", 1])
    assert [1, "lost", 1] in [offsets(log) for log in logs]


step = st.sampled_from(["publish", "publish", "turn", "turn", "join", "leave", "replay", "settle", "whisper"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(step, max_size=40), data=st.data())
def test_whatever_happens_between_slices_every_reader_gets_each_message_once_in_order(
    steps: list[str], data: st.DataObject
) -> None:
    async def scenario() -> None:
        harness = Harness()
        first: list[int] = []
        here: list[tuple[Any, list[Any]]] = []
        published = 0

        async def join() -> None:
            here.append(await harness.reader())
            first.append(published)

        for _ in range(4):
            await join()
        for what in steps:
            if what == "publish":
                await harness.publish()
                published += 1
            elif what == "turn":
                await asyncio.sleep(0)
            elif what == "whisper":
                harness.hub.deliver(Transient("s", '"t"'))
            elif what == "join":
                await join()
            else:
                index = data.draw(st.integers(0, len(here) - 1))
                reader, _ = here[index]
                if reader.stream is None:
                    continue
                if what == "leave":
                    harness.hub.remove(reader)
                elif what == "settle":  # as when its subscription starts another stream
                    harness.hub.go_live(reader)
                else:  # as a subscription does on a client's request
                    reader.live = False
                    await asyncio.sleep(0)
                    while harness.hub.is_behind(reader):
                        assert await harness.hub.send_page(reader)
                    harness.hub.go_live(reader)
        await turns()
        for (reader, log), start in zip(here, first, strict=True):
            got = [frame["offset"] for frame in log if "offset" in frame]
            assert got == list(range(start + 1, start + len(got) + 1))
            if reader.stream is not None:
                assert start + len(got) == published

    asyncio.run(scenario())
