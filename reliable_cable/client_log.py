"""Limits what is logged on behalf of one client, and about all refused handshakes, so that no client fills the log.

Everything that a client can cause repeatedly is logged by the `ClientLog` of its connection. A line that says why a
connection is ended is logged by `logger`: there is only one such line for each connection, and it must not be left out.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from django.conf import settings

from reliable_cable.logs import logger

#: The maximum number of lines that are logged on behalf of one client in each `INTERVAL`.
MAX_LINES: Final = 20
#: The maximum number of tracebacks that are logged on behalf of one client in each `INTERVAL`.
MAX_TRACEBACKS: Final = 5
#: After how long, in seconds, the counts of lines and tracebacks begin again.
INTERVAL: Final = 60.0


class ClientLog(logging.LoggerAdapter[logging.Logger]):
    """The logger of a connection. In each `INTERVAL`, it logs the first lines, and then the number of the others.

    Args:
        subject: what the lines are about.
        clock: returns the time in seconds, by any monotonic clock.
    """

    def __init__(self, subject: str = "the same client", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logger, {})
        self._subject = subject
        self._clock = clock
        self._began = clock()
        self._lines = self._tracebacks = 0

    def refusal(self, msg: str, *args: object) -> None:
        """Log that a handler refused the client: at INFO, or at WARNING while `DEBUG` is on, which is shown."""
        self.log(logging.WARNING if settings.DEBUG else logging.INFO, msg, *args, stacklevel=2)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name in logging
        """Return whether a line of this level is logged, and count it."""
        if not super().isEnabledFor(level):
            return False
        self.report()
        self._lines += 1
        return self._lines <= MAX_LINES

    def report(self, *, ended: bool = False) -> None:
        """Log how many lines were left out, if the `INTERVAL` is over.

        Args:
            ended: whether the connection has ended, so that nothing more will be logged.
        """
        now = self._clock()
        if now - self._began < INTERVAL and not ended:
            return
        omitted = self._lines - MAX_LINES
        self._began, self._lines, self._tracebacks = now, 0, 0
        if omitted > 0:
            self.logger.warning("And %d more lines about %s.", omitted, self._subject)

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Leave out the traceback of a line if `MAX_TRACEBACKS` were logged before."""
        if kwargs.get("exc_info"):
            self._tracebacks += 1
            if self._tracebacks > MAX_TRACEBACKS:
                kwargs = {**kwargs, "exc_info": None}
        return msg, kwargs


#: The logger for handshakes that are refused or fail. They have no connection with a logger of its own.
handshake_log: Final = ClientLog("handshakes")
