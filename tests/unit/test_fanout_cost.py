"""What a delivery may cost: counted where that is exact, compared with a bare loop in the same run where it is not.

The benchmark (tests/benchmarks) says what the whole server costs; these keep it from creeping up.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from reliable_cable.connection.outbox import Outbox
from reliable_cable.hub.fanout import POLICY
from tests.support.subscriber import LoneSubscriber
from tests.unit.hubs import Harness

#: Of the bare loop's. Measured were 3 times as many lines of Python (by plain ASGI 6.7), and 3.5 to 5.5 times its time.
MOST_LINES, MOST_ASGI_LINES, MOST_TIME = 4.0, 8.0, 9.0

Write = Callable[[bytes], Any]


class Sink:
    """Takes frames; its `append` is as little work as a write can be, and no Python."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.write: Write = self.frames.append


async def no_send(message: dict[str, Any]) -> None:
    """Stand for the ASGI `send`."""


async def stage(writes: list[Write | None], send: Any = no_send) -> Harness:
    """Return a hub whose stream has a live reader for each way to write; None: only by ASGI."""
    harness = Harness()
    for write in writes:
        outbox = Outbox(send, limit=10**6, overflow=lambda: None, write=write)
        reader = LoneSubscriber(outbox, "I", "s", frozenset(), lambda: None)
        await reader.join(harness.hub, "s")
        reader.confirmed = True
        reader.resume()
    await harness.publish()  # the first one makes the stream's epoch, and takes another way
    await asyncio.sleep(0)
    return harness


def bare(writes: list[Write]) -> Callable[[], None]:
    """Return the bare loop."""

    def loop() -> None:
        frame = b"x" * 100
        for write in writes:
            try:
                write(frame)
            except Exception:
                raise

    return loop


def delivery(harness: Harness) -> Callable[[], None]:
    """Return the delivery of one more message."""
    event = harness.append('"x"')
    return lambda: harness.hub.deliver(event)


def lines(call: Callable[[], None]) -> int:
    """Return how many lines of Python a call executes."""
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(former)
    return count


def calls(call: Callable[[], None]) -> Counter[str]:
    """Return how often each function is called meanwhile."""
    found: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            found[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            found[getattr(arg, "__qualname__", repr(arg))] += 1

    former = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(former)
    del found["setprofile"]
    return found


async def test_a_delivery_executes_few_more_lines_than_a_bare_loop() -> None:
    counts = {}
    for number in (100, 200):
        writes = [Sink().write for _ in range(number)]
        ours = lines(delivery(await stage([*writes])))
        asgi = lines(delivery(await stage([None] * number)))
        counts[number] = ours, asgi, lines(bare(writes))
    ours, asgi, loop = (more - fewer for more, fewer in zip(counts[200], counts[100], strict=True))
    assert loop >= 200
    assert loop <= ours <= MOST_LINES * loop
    assert asgi <= MOST_ASGI_LINES * loop


async def test_a_delivery_takes_few_times_the_cpu_of_a_bare_loop() -> None:
    writes = [Sink().write for _ in range(POLICY.budget)]
    harness = await stage([*writes])
    times: dict[str, float] = {}
    for _ in range(15):
        for name, call in (("ours", delivery(harness)), ("bare", bare(writes))):
            started = time.thread_time()
            call()
            times[name] = min(times.get(name, 1.0), time.thread_time() - started)
    assert times["ours"] <= MOST_TIME * times["bare"]


async def test_for_one_more_subscriber_nothing_is_called_but_its_write() -> None:
    """Neither JSON nor a method of the subscriber's."""
    found = {
        number: calls(delivery(await stage([Sink().write for _ in range(number)]))) for number in (10, POLICY.budget)
    }
    assert found[POLICY.budget] - found[10] == {"list.append": POLICY.budget - 10}


async def test_by_plain_asgi_one_more_subscriber_costs_one_send_and_no_json() -> None:
    found = {number: calls(delivery(await stage([None] * number))) for number in (10, POLICY.budget)}
    more = {name: count / (POLICY.budget - 10) for name, count in (found[POLICY.budget] - found[10]).items()}
    assert more == {
        "EncodedBatch._send_singly": 1,
        "Outbox.push": 1,
        "Outbox._drive": 1,
        "no_send": 1,
        "coroutine.send": 1,
    }


async def test_no_subscriber_has_a_task() -> None:
    for write in (Sink().write, None):
        harness = await stage([write] * (2 * POLICY.budget))
        made: list[Any] = []

        def factory(
            loop: asyncio.AbstractEventLoop, coroutine: Any, made: list[Any] = made, **options: Any
        ) -> asyncio.Task[Any]:
            made.append(coroutine)
            return asyncio.Task(coroutine, loop=loop, **options)

        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        try:
            for _ in range(3):
                await harness.publish()
        finally:
            loop.set_task_factory(None)
        assert len(made) <= 3, "one for what goes out in slices, at most, for each message"


class CountingSocket(socket.socket):
    """Counts system calls that send."""

    sends = 0

    def send(self, *args: Any) -> int:
        """Send, and count it."""
        CountingSocket.sends += 1
        return super().send(*args)


async def test_messages_cost_each_socket_one_system_call_and_those_of_one_turn_one_for_all_but_the_first() -> None:
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(20)]
    ours = [CountingSocket(fileno=one.detach()) for one, _ in pairs]
    transports = [(await loop.create_connection(asyncio.Protocol, sock=one))[0] for one in ours]
    harness = await stage([transport.write for transport in transports])
    CountingSocket.sends = 0
    for _ in range(3):
        await harness.publish()
        await asyncio.sleep(0)
    for _ in range(5):
        await harness.publish()
    for _ in range(3):
        await asyncio.sleep(0)
    for transport in transports:
        transport.close()
    await asyncio.sleep(0)
    received = []
    for _, other in pairs:
        with other:
            received.append(other.recv(1 << 16).count(b'"offset"'))
    assert received == [1 + 3 + 5] * 20
    assert 0 < CountingSocket.sends <= 20 * (3 + 2)
