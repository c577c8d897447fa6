"""Every error this package raises has one root, `CableError`."""

from __future__ import annotations

from django.core.exceptions import SynchronousOnlyOperation


class CableError(Exception):
    """Root of this package's errors."""


class ProtocolError(CableError):
    """A client sent something that the protocol does not allow."""


class BroadcastError(CableError):
    """A broadcast was refused, or could not be stored: nothing was sent to anybody."""


class BroadcastUncertain(BroadcastError):
    """Whether a broadcast was stored is unknown (the answer was lost).

    Repeating it with the same `idempotency_key` is safe.
    """


class InvalidStreamName(BroadcastError, ValueError):
    """A stream's name is not a non-empty string of at most 255 printable characters."""


class InvalidPayload(BroadcastError, ValueError):
    """A payload cannot be broadcast: falsy, not serialisable as JSON, or too large."""


class PayloadTooLarge(InvalidPayload):
    """A payload is larger than `MAX_BROADCAST_SIZE`."""


class InvalidOption(BroadcastError, ValueError):
    """The options of a broadcast contradict each other, or cannot be used with its stream."""


class InvalidIdentifier(CableError, ValueError):
    """A remote disconnect names no identifier, one that no connection has, or nobody."""


class ChannelError(CableError):
    """A channel class is used or declared in a way that cannot work."""


class StoreError(CableError):
    """A store could not be read or changed."""


class AsyncContextError(CableError, SynchronousOnlyOperation):
    """A sync function was called in a thread with a running event loop; its async twin has to be awaited instead."""
