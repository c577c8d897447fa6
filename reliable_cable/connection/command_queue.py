"""The command queue of a connection.

Commands are handled one after another, in a separate task. So the end of the connection is detected even while a
handler is running.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from contextvars import Context
from dataclasses import dataclass, field
from typing import Final

from reliable_cable.client_log import ClientLog
from reliable_cable.concurrency.tasks import BackgroundTasks
from reliable_cable.protocol import commands

from .account import Account
from .command_limits import SUBSCRIBE_WAITING_TIME, CommandLimits

#: The maximum number of queued commands. When it is reached, the server reads no frames of the client until half of the
#: commands have been handled.
MAX_QUEUED_COMMANDS: Final = 256

#: The commands that clients often send several times in a row.
_REPEATED = (commands.Perform, commands.Whisper)


#: A coroutine function that the server queues between the client's commands. It is called even if the connection has
#: been closed.
InternalCall = Callable[[], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Backlog:
    """The commands that are queued or being handled. An idle connection has no backlog."""

    #: The queued commands, each with the size of its frame in characters, and with its time of arrival if it is a
    #: `subscribe`.
    commands: deque[tuple[commands.Command | InternalCall, int, float]] = field(default_factory=deque)
    #: The identifiers whose `subscribe` is queued or being handled, with the time of its arrival.
    subscribing: dict[str, float] = field(default_factory=dict)
    #: Whether the task may wait for more commands when the queue is empty. False once `finished` has been called.
    lingers: bool = True
    #: Whether the rate limits delay commands. False once `finished` has been called.
    limited: bool = True
    #: Whether the server has stopped reading commands, because the client exceeded the rate limits for too long.
    exceeded: bool = False
    #: The future that the task is waiting for. None while the task is handling commands.
    parked: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Let a waiting task continue. The task ends if no command is queued."""
        if self.parked is not None and not self.parked.done():
            self.parked.set_result(None)


class CommandQueue(ABC):
    """The queue of the commands of one connection. A subclass handles the commands.

    A task handles the queue. If the last command is an action or a whisper, the task waits for more commands until the
    next ping. So a client that sends many messages needs one task per ping interval, not one per message. An idle
    client has no task.

    Args:
        tasks: the background tasks of the event loop.
        account: counts the bytes of the queued commands.
        context: the context of the connection. Commands run in copies of it.
        limits: delays the commands. None means that commands are never delayed.
    """

    __slots__ = ("_account", "_backlog", "_context", "_limits", "_room", "_task", "_tasks", "full")

    def __init__(
        self, tasks: BackgroundTasks, account: Account, context: Context, limits: CommandLimits | None
    ) -> None:
        self._tasks = tasks
        self._account = account
        self._context = context
        self._limits = limits
        #: Whether reading must stop until the queue has room again (see `has_room`).
        self.full = False
        #: The future that `has_room` awaits. It is done when the queue is no longer full.
        self._room: asyncio.Future[None] | None = None
        self._backlog: _Backlog | None = None
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def execute(self, command: commands.Command, arrived: float) -> None:
        """Handle one command.

        Implementations must call `answered` when a `subscribe` has been answered. `execute` may return before that.

        Args:
            command: the command to handle.
            arrived: for a `subscribe`, the time of its arrival, by the clock of the event loop.
        """

    @abstractmethod
    def limits_exceeded(self) -> None:
        """Disconnect the client for exceeding the rate limits, after its queued commands have been handled."""

    @property
    @abstractmethod
    def log(self) -> ClientLog:
        """The logger for messages that the client can cause repeatedly. It limits their number."""

    @abstractmethod
    def revoke(self, identifiers: Collection[str], reason: str) -> None:
        """End subscriptions, and send the client the reason."""

    def add(self, command: commands.Command, size: int) -> None:
        """Queue a command. If the queue is `full` afterwards, await `has_room` before you queue the next one.

        Args:
            command: the command to queue.
            size: the size of the command's frame, in characters.
        """
        backlog = self._start()
        arrived = 0.0
        if isinstance(command, commands.Subscribe):
            if command.identifier in backlog.subscribing:
                return  # the client repeated a `subscribe` that has not been answered
            arrived = backlog.subscribing[command.identifier] = asyncio.get_running_loop().time()
        elif isinstance(command, commands.Unsubscribe):
            backlog.subscribing.pop(command.identifier, None)
        backlog.commands.append((command, size, arrived))
        account = self._account
        account.used += size
        if len(backlog.commands) >= MAX_QUEUED_COMMANDS or account.used > account.half:
            self.full = True

    async def has_room(self) -> None:
        """Wait until the queue is not full."""
        if self.full:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    def call_next(self, call: InternalCall) -> None:
        """Add a coroutine function to the front of the queue. It is called even if the connection has been closed."""
        self._start().commands.appendleft((call, 0, 0.0))

    def _start(self) -> _Backlog:
        """Return the backlog, and start or wake its task. The caller must add a command before its next `await`."""
        if self._backlog is None:
            self._backlog = _Backlog()
            # The context is passed because a revocation may call this method in another connection's context.
            self._task = self._tasks.spawn(self._run(self._backlog), context=self._context.copy())
        else:
            self._backlog.wake()
        return self._backlog

    def clear(self) -> None:
        """Drop the queued commands of the client. Calls that the server itself queued remain."""
        if self._backlog is not None:
            self._account.used -= sum(size for _, size, _ in self._backlog.commands)
            self._backlog.commands = deque(each for each in self._backlog.commands if callable(each[0]))
            self._make_room()

    def end_if_idle(self) -> None:
        """End the task if it is only waiting for more commands."""
        if self._backlog is not None:
            self._backlog.wake()

    async def finished(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the timeout cancels nothing
        """Wait until the queued commands have been handled, for at most `timeout` seconds."""
        if self._backlog is not None and self._task is not None:
            # The number of queued commands is limited, so the rate limits need not delay them.
            self._backlog.lingers = self._backlog.limited = False
            self._backlog.wake()
            await asyncio.wait([self._task], timeout=timeout)

    @property
    def next_command(self) -> commands.Command | InternalCall | None:
        """The next command to handle, or None if no command is queued."""
        return self._backlog.commands[0][0] if self._backlog is not None and self._backlog.commands else None

    def is_wanted(self, identifier: str, arrived: float) -> bool:
        """Return whether the `subscribe` with this identifier and time of arrival still has to be answered."""
        return self._backlog is not None and self._backlog.subscribing.get(identifier) == arrived

    def answered(self, identifier: str, arrived: float) -> None:
        """Record that a `subscribe` has been answered, so that a repeated `subscribe` is no longer ignored."""
        if self._backlog is not None and self.is_wanted(identifier, arrived):
            del self._backlog.subscribing[identifier]

    async def _run(self, backlog: _Backlog) -> None:
        try:
            while backlog.commands:
                if self._limits is not None:
                    await self._wait_for_limits(self._limits, backlog)
                    if not backlog.commands:
                        break  # the connection has been closed
                command, size, arrived = backlog.commands.popleft()
                self._account.used -= size
                if self.full and not backlog.exceeded and len(backlog.commands) <= MAX_QUEUED_COMMANDS // 2:
                    if not backlog.commands or self._account.used <= self._account.half:
                        self._make_room()
                try:
                    if isinstance(command, commands.Command):
                        await self.execute(command, arrived)
                    else:
                        await command()
                except Exception:
                    self.log.exception("The command %s failed.", type(command).__name__)
                if self._limits is not None and not backlog.commands:
                    self._limits.rest(asyncio.get_running_loop().time())
                if backlog.lingers and not backlog.commands and isinstance(command, _REPEATED):
                    backlog.parked = asyncio.get_running_loop().create_future()
                    await backlog.parked
                    backlog.parked = None
        finally:
            self._backlog = self._task = None
            self._account.used -= sum(size for _, size, _ in backlog.commands)
            backlog.commands.clear()
            self._make_room()

    async def _wait_for_limits(self, limits: CommandLimits, backlog: _Backlog) -> None:
        """Wait until the rate limits allow the next command. Calls that the server itself queued are not delayed.

        If a `subscribe` is unanswered, the wait ends at most `SUBSCRIBE_WAITING_TIME` seconds after its arrival.
        """
        loop = asyncio.get_running_loop()
        command = backlog.commands[0][0]
        if not isinstance(command, commands.Command):
            return
        now = loop.time()
        until = now + limits.take(command, now)
        if limits.exceeded(now) and not backlog.exceeded:
            self.full = backlog.exceeded = True
            self.limits_exceeded()
        # The task is woken by new commands, by calls that the server queues, by `end_if_idle` and by `finished`.
        while backlog.limited and backlog.commands and backlog.commands[0][0] is command:
            oldest = next(iter(backlog.subscribing.values()), math.inf)
            delay = min(until, oldest + SUBSCRIBE_WAITING_TIME) - loop.time()
            if delay <= 0:
                break
            backlog.parked = loop.create_future()
            await asyncio.wait([backlog.parked], timeout=delay)
            backlog.parked = None

    def _make_room(self) -> None:
        self.full = False
        if self._room is not None:
            self._room.set_result(None)
            self._room = None
