"""Exchanges with Redis, each written once as a generator and run over sync and async connections.

The generator yields the commands to send next, in one write, and receives their answers. The answer to a command that
failed is the exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Sequence
from typing import Any, TypeVar

from redis.exceptions import BusyLoadingError, ResponseError

T = TypeVar("T")

#: A command's name and its arguments.
Command = Sequence[str | int | float | bytes]
Exchange = Generator[Sequence[Command], list[Any], T]

#: Exceptions that are answers of Redis, and leave the connection usable.
ANSWERS = (ResponseError, BusyLoadingError)


def run_exchange(connection: Any, exchange: Exchange[T]) -> T:
    """Run an exchange over an open connection of redis-py; return its result.

    Raises:
        RedisError: the connection broke. The caller has to close it.
        OSError: the same.
    """
    try:
        commands = next(exchange)
        while True:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            answers: list[Any] = []
            for _ in commands:
                try:
                    answers.append(connection.read_response(disconnect_on_error=False))
                except ANSWERS as error:
                    answers.append(error)
            commands = exchange.send(answers)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def arun_exchange(connection: Any, exchange: Exchange[T]) -> T:
    """Async twin of `run_exchange`, over an open connection of `redis.asyncio`."""
    try:
        commands = next(exchange)
        while True:
            await cancellable(connection.send_packed_command(connection.pack_commands(commands), check_health=False))
            answers: list[Any] = []
            for _ in commands:
                try:
                    answers.append(await connection.read_response(disconnect_on_error=False))
                except ANSWERS as error:
                    answers.append(error)
            commands = exchange.send(answers)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def cancellable(sending: Awaitable[T]) -> T:
    """Wait until redis-py has sent something; raise `CancelledError` if the task was cancelled meanwhile.

    redis-py sends with `asyncio.wait_for`, which may swallow a cancellation on Python 3.11. A task that runs for ever
    could then not be ended.

    Raises:
        ConnectionError: the connection has been closed.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        result = await sending
    except AttributeError as error:
        # The answer of a closed transport of asyncio, since Python 3.12.
        raise ConnectionError("the connection has been closed") from error
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    return result
