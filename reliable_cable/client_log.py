"""Limits the number of log lines that a client can cause, so that no client can fill the log.

Each connection has a `ClientLog` for the lines that its client can cause repeatedly. Refused handshakes share another
`ClientLog`. The line that says why a connection was closed is logged by `logger` itself, so that it is never left out.
A connection has only one such line.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from django.conf import settings

from reliable_cable.logs import logger

#: The maximum number of lines that are logged for a client in each `INTERVAL`.
MAX_LINES: Final = 20
#: The maximum number of tracebacks that are logged for a client in each `INTERVAL`.
MAX_TRACEBACKS: Final = 5
#: How long an interval is, in seconds. At its end, the counts of lines and tracebacks are reset.
INTERVAL: Final = 60.0


class ClientLog(logging.LoggerAdapter[logging.Logger]):
    """A logger for lines that clients can cause. In each `INTERVAL`, it logs up to `MAX_LINES`, and counts the rest.

    Args:
        subject: the subject in the line "… more log lines about <subject> were omitted."
        clock: a function that returns the time of a monotonic clock, in seconds.
    """

    def __init__(self, subject: str = "the same client", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logger, {})
        self._subject = subject
        self._clock = clock
        self._began = clock()
        self._lines = self._tracebacks = 0

    def refusal(self, msg: str, *args: object) -> None:
        """Log that a handler refused the client.

        The level is INFO. If `DEBUG` is on, it is WARNING, so that the line is shown.
        """
        self.log(logging.WARNING if settings.DEBUG else logging.INFO, msg, *args, stacklevel=2)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name in logging
        """Count a line, and return whether it will be logged."""
        if not super().isEnabledFor(level):
            return False
        self.report()
        self._lines += 1
        return self._lines <= MAX_LINES

    def report(self, *, ended: bool = False) -> None:
        """If the interval is over, log how many lines were left out, and begin the next interval.

        Args:
            ended: whether the connection has ended. The number is then logged before the end of the interval.
        """
        now = self._clock()
        if now - self._began < INTERVAL and not ended:
            return
        omitted = self._lines - MAX_LINES
        self._began, self._lines, self._tracebacks = now, 0, 0
        if omitted > 0:
            self.logger.warning("%d more log lines about %s were omitted.", omitted, self._subject)

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Remove the traceback of a line if `MAX_TRACEBACKS` have been logged in this interval."""
        if kwargs.get("exc_info"):
            self._tracebacks += 1
            if self._tracebacks > MAX_TRACEBACKS:
                kwargs = {**kwargs, "exc_info": None}
        return msg, kwargs


#: The logger for refused and failed handshakes, which have no connection.
handshake_log: Final = ClientLog("handshakes")
