"""Limits how many readers of runs and durable streams a client keeps open (`RUN_MAX_READERS`).

See Deployment: Limits for each client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from reliable_cable.client_log import handshake_log
from reliable_cable.concurrency.per_loop import PerLoop
from reliable_cable.conf import get_settings
from reliable_cable.http.core import Refusal
from reliable_cable.hub.connect_limit import client_address
from reliable_cable.identity import identify
from reliable_cable.namespaces import qualify

from .requests import Visitor

#: How long, in seconds, a client that has too many open readers should wait before it tries again.
RETRY_AFTER: Final = 10


class OpenReaders:
    """Counts the open readers of each client in an event loop. A client is a user, or the address of anonymous users.

    Clients with an unknown address are not limited. A server that listens on a Unix socket knows no addresses.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def check(self, visitor: Visitor) -> None:
        """Check that a client may open another reader.

        Raises:
            Refusal: the client has too many open readers.
        """
        limit, client = get_settings().run_max_readers, _client_of(visitor)
        if limit is None or client is None or self._counts[client] < limit:
            return
        handshake_log.warning(
            "A reader was refused, because %r has %d open readers (RUN_MAX_READERS).", client, self._counts[client]
        )
        raise Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"You read {limit} answers or streams already. Close one of these requests first.",
            retry_after=RETRY_AFTER,
        )

    @contextmanager
    def opened(self, visitor: Visitor) -> Iterator[None]:
        """Count a reader until the context ends.

        Raises:
            Refusal: the client has too many open readers.
        """
        self.check(visitor)
        client = _client_of(visitor)
        if client is None:
            yield
            return
        self._counts[client] += 1
        try:
            yield
        finally:
            self._counts[client] -= 1
            if not self._counts[client]:
                del self._counts[client]


def _client_of(visitor: Visitor) -> str | None:
    name = identify(visitor.user) or client_address(visitor.scope)
    return None if name is None else qualify(visitor.namespace, name)


_readers: PerLoop[OpenReaders] = PerLoop()


def open_readers() -> OpenReaders:
    """Return the open readers of the running event loop."""
    return _readers.get(OpenReaders)
