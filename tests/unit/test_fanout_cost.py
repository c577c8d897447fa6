"""The maximum cost of a delivery, in lines, calls and CPU time, compared with a loop that only writes (`bare_loop`).

The benchmarks (tests/benchmarks) measure the cost of a whole server. These tests keep it from growing unnoticed.
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

from reliable_cable.connection.account import Account
from reliable_cable.connection.outbox import Outbox
from reliable_cable.hub.fanout import POLICY
from tests.support.subscriber import LoneSubscriber
from tests.unit.hubs import Harness

#: The maximum cost of a delivery, in multiples of `bare_loop`: lines of Python, lines if the server has only ASGI's
#: `send`, and CPU time. The measured values are 3, 6.7, and 3.5 to 5.5.
MAX_LINES, MAX_ASGI_LINES, MAX_TIME = 4.0, 8.0, 9.0

Write = Callable[[bytes], Any]


class Sink:
    """Records frames with `list.append`. This is the cheapest write possible, and executes no line of Python."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.write: Write = self.frames.append


async def no_send(message: dict[str, Any]) -> None:
    """Take the place of the ASGI `send`."""


async def make_harness(writes: list[Write | None], send: Any = no_send) -> Harness:
    """Return a hub whose stream has a live subscriber for each write function. None means ASGI's `send`."""
    harness = Harness()
    for write in writes:
        outbox = Outbox(send, account=Account(10**6), overflow=lambda: None, write=write)
        subscriber = LoneSubscriber(outbox, "I", "s", frozenset(), lambda: None)
        await subscriber.join(harness.hub, "s")
        subscriber.confirmed = True
        subscriber.resume()
    await harness.publish()  # the first message is a special case, because it begins an epoch
    await asyncio.sleep(0)
    return harness


def bare_loop(writes: list[Write]) -> Callable[[], None]:
    """Return a function that calls each write function once, in a loop."""

    def loop() -> None:
        frame = b"x" * 100
        for write in writes:
            try:
                write(frame)
            except Exception:
                raise

    return loop


def delivery(harness: Harness) -> Callable[[], None]:
    """Return a function that delivers one more message."""
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
    """Return how often each function is called while `call` runs."""
    counts: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            counts[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            counts[getattr(arg, "__qualname__", repr(arg))] += 1

    former = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(former)
    del counts["setprofile"]
    return counts


async def test_a_delivery_executes_few_more_lines_than_a_bare_loop() -> None:
    counts = {}
    for number in (100, 200):
        writes = [Sink().write for _ in range(number)]
        ours = lines(delivery(await make_harness([*writes])))
        asgi = lines(delivery(await make_harness([None] * number)))
        counts[number] = ours, asgi, lines(bare_loop(writes))
    ours, asgi, loop = (more - fewer for more, fewer in zip(counts[200], counts[100], strict=True))
    assert loop >= 200
    assert loop <= ours <= MAX_LINES * loop
    assert asgi <= MAX_ASGI_LINES * loop


async def test_a_delivery_takes_few_times_the_cpu_of_a_bare_loop() -> None:
    writes = [Sink().write for _ in range(POLICY.budget)]
    harness = await make_harness([*writes])
    times: dict[str, float] = {}
    for _ in range(15):
        for name, call in (("ours", delivery(harness)), ("bare", bare_loop(writes))):
            started = time.thread_time()
            call()
            times[name] = min(times.get(name, 1.0), time.thread_time() - started)
    assert times["ours"] <= MAX_TIME * times["bare"]


async def test_one_more_subscriber_costs_one_call_of_its_write_and_no_other() -> None:
    """For an additional subscriber, no JSON is encoded, and none of its methods is called."""
    counts = {
        number: calls(delivery(await make_harness([Sink().write for _ in range(number)])))
        for number in (10, POLICY.budget)
    }
    assert counts[POLICY.budget] - counts[10] == {"list.append": POLICY.budget - 10}


async def test_with_plain_asgi_one_more_subscriber_costs_one_send_and_no_json() -> None:
    counts = {number: calls(delivery(await make_harness([None] * number))) for number in (10, POLICY.budget)}
    more = {name: count / (POLICY.budget - 10) for name, count in (counts[POLICY.budget] - counts[10]).items()}
    assert more == {
        "EncodedBatch._send_singly": 1,
        "Outbox.push": 1,
        "Outbox._drive": 1,
        "no_send": 1,
        "coroutine.send": 1,
    }


async def test_no_subscriber_has_a_task() -> None:
    for write in (Sink().write, None):
        harness = await make_harness([write] * (2 * POLICY.budget))
        started: list[Any] = []

        def factory(
            loop: asyncio.AbstractEventLoop, coroutine: Any, started: list[Any] = started, **options: Any
        ) -> asyncio.Task[Any]:
            started.append(coroutine)
            return asyncio.Task(coroutine, loop=loop, **options)

        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        try:
            for _ in range(3):
                await harness.publish()
        finally:
            loop.set_task_factory(None)
        assert len(started) <= 3, "more than one task for each message"


class CountingSocket(socket.socket):
    """Counts system calls that send."""

    sends = 0

    def send(self, *args: Any) -> int:
        """Count the call, and send."""
        CountingSocket.sends += 1
        return super().send(*args)


async def test_a_message_costs_each_socket_one_system_call_and_a_burst_costs_two() -> None:
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(20)]
    sockets = [CountingSocket(fileno=near.detach()) for near, _ in pairs]
    transports = [(await loop.create_connection(asyncio.Protocol, sock=each))[0] for each in sockets]
    harness = await make_harness([transport.write for transport in transports])
    CountingSocket.sends = 0
    for _ in range(3):
        await harness.publish()
        await asyncio.sleep(0)
    for _ in range(5):
        harness.hub.deliver(harness.append())
    await harness.wait_until_written()
    for transport in transports:
        transport.close()
    await asyncio.sleep(0)
    received = []
    for _, far in pairs:
        with far:
            received.append(far.recv(1 << 16).count(b'"offset"'))
    assert received == [1 + 3 + 5] * 20
    assert 0 < CountingSocket.sends <= 20 * (3 + 2)
