"""What a session wants to know of, and do to, the transport behind ASGI's `send`."""

from __future__ import annotations

from collections.abc import Callable


class Connection:
    """A connection of a server that is not known: the session has only ASGI."""

    #: Whether the server is one whose shutdown can be drained.
    drainable = False

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call `pause` when the transport's buffer fills, and `resume` when it has drained.

        A server whose `send` waits while its buffer is full needs none of this.
        """

    def abort(self) -> None:
        """Drop the connection at once, with whatever its buffer holds."""
