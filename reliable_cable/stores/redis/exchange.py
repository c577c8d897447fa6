"""Exchanges with Redis. An exchange is a generator, which can run over a sync or an async connection.

The generator yields the commands to send in one write, and receives the replies. The reply to a failed command is an
exception.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Generator, Sequence
from typing import Any, TypeVar

from redis.exceptions import BusyLoadingError, ResponseError

T = TypeVar("T")

#: A command's name and its arguments.
Command = Sequence[str | int | float | bytes]
Exchange = Generator[Sequence[Command], list[Any], T]

#: The exceptions for error replies of Redis. The connection remains usable after them.
ERROR_REPLIES = (ResponseError, BusyLoadingError)


def pack(commands: Sequence[Command]) -> bytes:
    """Encode commands in the protocol of Redis. The encoder of redis-py would take three times as long."""
    parts = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            data = argument if isinstance(argument, bytes) else str(argument).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def send(commands: Sequence[Command], asking: bool) -> Exchange[list[Any]]:
    """Send commands in one write, and return the replies.

    Args:
        commands: the commands.
        asking: whether to send ASKING before each command. A node of a cluster then executes a command for a slot that
            is being moved to it.
    """
    if not commands:
        return []
    if not asking:
        return (yield commands)
    replies = yield [each for command in commands for each in (("ASKING",), command)]
    return replies[1::2]


def run_exchange(connection: Any, exchange: Exchange[T]) -> T:
    """Run an exchange over an open connection of redis-py, and return its result.

    Raises:
        RedisError: the connection broke. The caller must close it.
        OSError: the connection broke. The caller must close it.
    """
    try:
        commands = next(exchange)
        while True:
            connection.send_packed_command([pack(commands)], check_health=False)
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(connection.read_response(disconnect_on_error=False))
                except ERROR_REPLIES as error:
                    replies.append(error)
            commands = exchange.send(replies)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def arun_exchange(connection: Any, exchange: Exchange[T]) -> T:
    """Async version of `run_exchange`, over an open connection of `redis.asyncio`."""
    try:
        commands = next(exchange)
        while True:
            await cancellable(connection.send_packed_command([pack(commands)], check_health=False))
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response(disconnect_on_error=False))
                except ERROR_REPLIES as error:
                    replies.append(error)
            commands = exchange.send(replies)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def cancellable(sending: Awaitable[T]) -> T:
    """Wait until redis-py has sent data, and raise `CancelledError` if the task was cancelled during the wait.

    redis-py sends with `asyncio.wait_for`, which may ignore a cancellation on Python 3.11. Without this function, a
    task with an endless loop could not be stopped in that case.

    Raises:
        ConnectionError: the connection has been closed.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        result = await sending
    except AttributeError as error:
        # Since Python 3.12, a closed transport of asyncio raises `AttributeError`.
        raise ConnectionError("the connection has been closed") from error
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    return result


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine without an event loop, and return its result. The coroutine must never suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} cannot run without an event loop, because it was suspended")
