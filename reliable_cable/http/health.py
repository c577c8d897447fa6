"""The endpoint `GET /health`, which tells load balancers and orchestrators whether this server can serve clients."""

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Final

from reliable_cable.client_log import ClientLog
from reliable_cable.concurrency.per_loop import PerLoop
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.hub.current import is_draining
from reliable_cable.stores.engine import Engine, get_engine

from .core import GET, Call, Endpoint, Refusal, Request, Response, Steps

#: How long, in seconds, a request waits for an answer from the stream store. After this time, the response has the
#: status 503.
ANSWER_TIMEOUT: Final = 1.5
#: How long, in seconds, the result of a check is used for further requests, counted from the start of the check.
CHECK_INTERVAL: Final = 1.0
#: How long, in seconds, a check continues to wait for the stream store. After this time, the check fails, and another
#: one can begin.
CHECK_TIMEOUT: Final = 10.0

#: The logger for failed checks. It limits the number of log lines, because anybody can request checks.
_log = ClientLog("health checks")


class StoreCheck:
    """Checks whether the stream store answers. Concurrent requests of one event loop share one check.

    Args:
        engine: the engine whose stream store is checked.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._task: asyncio.Task[bool] | None = None
        self._began = 0.0

    async def is_answered(self) -> bool:
        """Return whether the store answered the latest check within `ANSWER_TIMEOUT` seconds."""
        loop = asyncio.get_running_loop()
        task = self._task
        if task is None or (task.done() and loop.time() - self._began >= CHECK_INTERVAL):
            self._began = loop.time()
            task = self._task = loop.create_task(self._check())
        # After this timeout, the check is not cancelled, because a cancellation would not free its thread, which may be
        # waiting for a database.
        await asyncio.wait({task}, timeout=max(self._began + ANSWER_TIMEOUT - loop.time(), 0))
        return task.done() and not task.cancelled() and task.result()

    async def _check(self) -> bool:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await self.engine.streams.aposition(CONTROL_STREAM)
        except Exception as error:
            _log.warning("The stream store did not answer a health check: %r", error)
            return False
        return True


_checks: PerLoop[StoreCheck] = PerLoop()


async def find_problem() -> str | None:
    """Return the reason why this server cannot serve clients, as a sentence; None if it can serve them."""
    if is_draining():
        return "This server is about to stop."
    engine = get_engine()
    check = _checks.get(partial(StoreCheck, engine), lambda check: check.engine is engine)
    return None if await check.is_answered() else f"The stream store did not answer within {ANSWER_TIMEOUT} s."


def report(request: Request) -> Steps[Response]:
    """Return a response with the status 200. If there is a problem, refuse the request with the status 503."""
    problem: str | None = yield Call(find_problem)
    if problem is not None:
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, problem)
    return Response.json(HTTPStatus.OK, '{"status": "ok"}')


HEALTH = Endpoint(GET, None, report)
