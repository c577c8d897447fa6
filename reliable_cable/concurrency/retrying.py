"""Retries calls that fail, for example because a database, a store or a channel layer cannot be reached."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from reliable_cable.logs import logger

from .outages import is_outage

T = TypeVar("T")

#: The time, in seconds, between two attempts if a client is waiting for the result.
RETRY_DELAY: Final = 0.5

#: The time, in seconds, between two attempts of background work, for which no client is waiting.
BACKGROUND_RETRY_DELAY: Final = 1.0


async def retry(
    call: Callable[[], Awaitable[T]],
    problem: str,
    *,
    delay: float,
    errors: type[Exception] | tuple[type[Exception], ...] = Exception,
    until: float = math.inf,
) -> T:
    """Await a call, and repeat it until it succeeds.

    The first failure is logged as a warning, and later failures at level DEBUG. Outages are logged without a traceback.

    Args:
        call: the function to call in each attempt.
        problem: the beginning of the log message, such as "Control messages cannot be read".
        delay: the time, in seconds, before each retry.
        errors: the errors after which the call is repeated.
        until: the time, by the clock of the event loop, after which no retry begins.

    Raises:
        Exception: the last attempt raised this error.
    """
    level = logging.WARNING
    while True:
        try:
            return await call()
        except errors as error:
            if asyncio.get_running_loop().time() + delay > until:
                raise
            logger.log(level, "%s; trying again: %s", problem, error, exc_info=not is_outage(error))
            level = logging.DEBUG
        await asyncio.sleep(delay)
