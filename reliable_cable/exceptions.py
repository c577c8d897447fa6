"""The errors of this package. All of them are subclasses of `CableError`."""

from django.core.exceptions import SynchronousOnlyOperation


def reason(error: BaseException) -> str:
    """Return the text of an error without its full stop, for the end of a sentence."""
    return str(error).rstrip(".")


class CableError(Exception):
    """Base class of all errors of this package."""


class ProtocolError(CableError):
    """A client violated the protocol."""


class BroadcastError(CableError):
    """A broadcast was refused, or could not be stored. Nothing was sent."""


class BroadcastUncertain(BroadcastError):
    """It is not known whether a broadcast was stored, because the response of the store was lost.

    Repeating the broadcast with the same `idempotency_key` is safe.
    """


class InvalidStreamName(BroadcastError, ValueError):
    """A stream's name is not a string of 1 to 255 characters, or contains a control character."""


class InvalidPayload(BroadcastError, ValueError):
    """A payload cannot be broadcast: it is falsy in JavaScript, is too large, or cannot be encoded as JSON."""


class PayloadTooLarge(InvalidPayload):
    """A payload is larger than `MAX_BROADCAST_SIZE`."""


class InvalidOption(BroadcastError, ValueError):
    """The options of a broadcast contradict each other, or cannot be used with its stream."""


class InvalidIdentifier(CableError, ValueError):
    """A call of `disconnect` or `revoke` has an identifier that no connection can have, or `disconnect` has none."""


class ChannelError(CableError):
    """A channel class is declared or used in a way that cannot work."""


class MissingParam(CableError, KeyError):
    """A client subscribed without a parameter that its channel reads with `self.params[name]`."""


class InvalidToken(CableError):
    """A token was refused. An authenticator (`AUTHENTICATORS`) raises this to refuse a client."""


class TokenExpired(InvalidToken):
    """A token has expired. The client gets a new one and reconnects."""


class StoreError(CableError):
    """A store could not be read or changed."""


class AsyncContextError(CableError, SynchronousOnlyOperation):
    """A sync function was called in a thread with a running event loop. Await its async twin instead."""
