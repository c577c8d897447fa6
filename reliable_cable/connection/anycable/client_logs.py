"""Limits log messages separately for each client of anycable-go, so that no client suppresses those of the others."""

from typing import Final

from reliable_cable.client_log import ClientLog

#: The maximum number of clients with a log of their own. If there are more, the least recently used log is dropped.
MAX_CLIENTS: Final = 1000


class ClientLogs:
    """The `ClientLog` of each client that has made a call recently, by session id."""

    __slots__ = ("_logs",)

    def __init__(self) -> None:
        self._logs: dict[str, ClientLog] = {}

    def get(self, sid: str) -> ClientLog:
        """Return the log of a client. All clients without a session id share one log."""
        log = self._logs.pop(sid, None) or ClientLog()
        self._logs[sid] = log  # the logs are in the order of their last use
        if len(self._logs) > MAX_CLIENTS:
            self.end(next(iter(self._logs)))
        return log

    def end(self, sid: str) -> None:
        """Drop the log of a client, for example after its disconnect, and log how many lines were left out."""
        log = self._logs.pop(sid, None)
        if log is not None:
            log.report(ended=True)
