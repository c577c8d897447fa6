"""`RATE_LIMITS` limits the commands of one connection. The time of these tests is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextvars import copy_context

import pytest

from reliable_cable.client_log import ClientLog
from reliable_cable.concurrency.tasks import BackgroundTasks
from reliable_cable.conf import RateLimit
from reliable_cable.connection.account import Account
from reliable_cable.connection.command_limits import SUBSCRIBE_WAITING_TIME, WAITING_TIME, CommandLimits
from reliable_cable.connection.command_queue import MAX_QUEUED_COMMANDS, CommandQueue
from reliable_cable.protocol import commands
from reliable_cable.protocol.positions import HistoryRequest
from tests.support.virtual_loop import VirtualLoop

TEN = RateLimit(10, 1)


class Queue(CommandQueue):
    """Records when each command is handled."""

    def __init__(self, limits: CommandLimits) -> None:
        super().__init__(BackgroundTasks(), Account(10**6), copy_context(), limits)
        self.handled: list[tuple[commands.Command, float]] = []
        self.ended_at: float | None = None

    async def execute(self, command: commands.Command, arrived: float) -> None:
        self.handled.append((command, asyncio.get_running_loop().time()))
        if isinstance(command, commands.Subscribe):
            self.answered(command.identifier, arrived)

    def limits_exceeded(self) -> None:
        self.ended_at = asyncio.get_running_loop().time()

    @property
    def log(self) -> ClientLog:
        return ClientLog()

    def revoke(self, identifiers: Collection[str], reason: str) -> None:
        raise NotImplementedError

    @property
    def times(self) -> list[float]:
        """When the commands were handled, in seconds since the loop began."""
        return [time - 1000 for _, time in self.handled]


def perform(number: int) -> commands.Perform:
    return commands.Perform("I", {"number": number})


def whisper(number: int) -> commands.Whisper:
    return commands.Whisper("I", str(number))


def add(loop: VirtualLoop, queue: Queue, *added: commands.Command) -> None:
    def add_all() -> None:
        for command in added:
            queue.add(command, 1)

    loop.call(add_all)


class TestQueue:
    def test_a_burst_is_handled_at_once_and_the_rest_at_the_rate_in_order(self, loop: VirtualLoop) -> None:
        queue = Queue(CommandLimits(TEN, None, 1))
        sent = [perform(number) for number in range(30)]
        add(loop, queue, *sent)
        loop.run_for(5)
        assert [command for command, _ in queue.handled] == sent
        assert queue.times == pytest.approx([0] * 10 + [number / 10 for number in range(1, 21)])
        assert queue.ended_at is None

    def test_whispers_have_a_limit_of_their_own_and_count_as_commands(self, loop: VirtualLoop) -> None:
        queue = Queue(CommandLimits(RateLimit(4, 2), RateLimit(2, 1), 1))
        add(loop, queue, perform(0), *(whisper(number) for number in range(4)))
        loop.run_for(5)
        assert queue.times == pytest.approx([0, 0, 0, 0.5, 1])
        only_whispers = Queue(CommandLimits(None, RateLimit(2, 1), 1))
        add(loop, only_whispers, *(perform(number) for number in range(100)))
        loop.run_for(0.001)
        assert len(only_whispers.handled) == 100

    def test_a_client_that_waits_for_each_answer_is_slowed_down_and_never_disconnected(self, loop: VirtualLoop) -> None:
        queue = Queue(CommandLimits(RateLimit(1, 1), None, 1))
        for number in range(30):
            add(loop, queue, perform(number))
            loop.run_for(1)
            assert len(queue.handled) == number + 1
        assert queue.ended_at is None

    def test_a_client_whose_commands_wait_too_long_is_disconnected_once_after_they_were_handled(
        self, loop: VirtualLoop
    ) -> None:
        queue = Queue(CommandLimits(TEN, None, 1))
        sent = [perform(number) for number in range(200)]
        add(loop, queue, *sent)
        loop.run_for(WAITING_TIME)
        assert queue.ended_at is None
        loop.run_for(0.3)
        assert queue.ended_at == pytest.approx(1000 + WAITING_TIME + 0.1)
        assert queue.full, "frames are read although the connection is being closed"
        assert len(queue.handled) < 200
        loop.run_until_complete(queue.finished())
        assert [command for command, _ in queue.handled] == sent

    def test_nothing_more_is_read_while_many_commands_wait(self, loop: VirtualLoop) -> None:
        queue = Queue(CommandLimits(RateLimit(100, 1), None, 1))
        add(loop, queue, *(perform(number) for number in range(MAX_QUEUED_COMMANDS)))
        assert queue.full
        loop.run_until_complete(queue.has_room())
        assert loop.time() - 1000 == pytest.approx((MAX_QUEUED_COMMANDS / 2 - 100) / 100, abs=0.02)

    def test_the_rest_of_a_queue_need_not_wait_at_the_end_of_the_connection(self, loop: VirtualLoop) -> None:
        queue = Queue(CommandLimits(TEN, None, 1))
        add(loop, queue, *(perform(number) for number in range(100)))
        loop.run_for(1)
        loop.run_until_complete(queue.finished())
        assert queue.times[-1] == pytest.approx(1)
        assert len(queue.handled) == 100

    def test_commands_that_wait_are_dropped_when_the_connection_is_closed(self, loop: VirtualLoop) -> None:
        queue = Queue(CommandLimits(TEN, None, 1))
        add(loop, queue, *(perform(number) for number in range(100)))
        loop.run_for(0.05)
        loop.call(queue.clear)
        loop.run_until_complete(queue.finished())
        assert len(queue.handled) == 10

    def test_calls_of_the_server_do_not_wait(self, loop: VirtualLoop) -> None:
        queue, called = Queue(CommandLimits(TEN, None, 1)), []

        async def call() -> None:
            called.append(loop.time())

        add(loop, queue, *(perform(number) for number in range(20)))
        loop.run_for(0.05)
        loop.call(lambda: queue.call_next(call))
        loop.run_for(0.001)
        assert called == [pytest.approx(1000.05)]
        loop.run_for(2)
        assert [command for command, _ in queue.handled] == [perform(number) for number in range(20)]


class TestSubscribe:
    def test_it_is_answered_in_time_behind_commands_that_wait(self, loop: VirtualLoop) -> None:
        queue = Queue(CommandLimits(RateLimit(10, 1), None, 1))
        add(loop, queue, *(perform(number) for number in range(90)))
        loop.run_for(1)
        subscribe = commands.Subscribe("J")
        add(loop, queue, subscribe)
        loop.run_for(3)
        # The client repeats the subscribe, which must not be handled twice.
        add(loop, queue, subscribe)
        loop.run_for(SUBSCRIBE_WAITING_TIME)
        answered = [time - 1000 for command, time in queue.handled if command == subscribe]
        assert answered == [pytest.approx(1 + SUBSCRIBE_WAITING_TIME)]
        assert queue.handled[-1][0] == subscribe
        assert queue.ended_at is None

    def test_a_client_that_connects_with_many_subscriptions_does_not_wait(self, loop: VirtualLoop) -> None:
        queue = Queue(CommandLimits(RateLimit(1, 1), None, 100))
        connecting = [
            command
            for number in range(100)
            for command in (
                commands.Subscribe(str(number)),
                commands.History(str(number), HistoryRequest()),
                commands.Join(str(number), commands.PresenceClaim("1")),
            )
        ]
        add(loop, queue, *connecting[:200])
        loop.run_for(0.001)
        add(loop, queue, *connecting[200:])
        loop.run_for(0.001)
        assert len(queue.handled) == 300
        add(loop, queue, perform(1))
        loop.run_for(0.001)
        assert len(queue.handled) == 301, "the commands of a client that connects have counted"
        add(loop, queue, commands.Subscribe("another"))
        loop.run_for(0.5)
        assert len(queue.handled) == 301, "a connection has any number of such commands"
        loop.run_for(0.6)
        assert len(queue.handled) == 302

    def test_it_does_not_open_the_way_for_more_and_more_other_commands(self, loop: VirtualLoop) -> None:
        queue = Queue(CommandLimits(TEN, None, 1))
        for number in range(10):
            add(loop, queue, *(perform(each) for each in range(100)), commands.Subscribe(str(number)))
            loop.run_for(SUBSCRIBE_WAITING_TIME + 0.1)
            if queue.ended_at is not None:
                break
        assert queue.ended_at is not None
        assert queue.ended_at - 1000 < WAITING_TIME + SUBSCRIBE_WAITING_TIME

    def test_a_client_that_only_subscribes_is_limited(self, loop: VirtualLoop) -> None:
        queue = Queue(CommandLimits(TEN, None, 2))
        add(
            loop,
            queue,
            *(each for number in range(50) for each in (commands.Subscribe("I"), commands.Unsubscribe("I"))),
        )
        loop.run_for(1)
        assert len(queue.handled) <= 10 + 3 * 2 + 10 + 1
