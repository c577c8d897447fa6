"""The exceptions of this package. All of them are subclasses of `CableError`."""

from django.core.exceptions import SynchronousOnlyOperation


def reason(error: BaseException) -> str:
    """Return the message of an error without the full stop, for use inside a sentence."""
    return str(error).rstrip(".")


def described(error: BaseException) -> str:
    """Return the message of an error for use inside a sentence. If it has none, return the name of its type."""
    return reason(error) or type(error).__name__


class CableError(Exception):
    """Base class of the exceptions of this package."""


class ProtocolError(CableError):
    """Raised if a client violated the protocol."""


class BroadcastError(CableError):
    """Raised if a broadcast was refused or could not be stored.

    Nothing was sent, unless the error is a `BroadcastUncertain`.
    """


class BroadcastUncertain(BroadcastError):
    """Raised if the response of a store was lost, so that a broadcast may or may not have been stored.

    The broadcast can safely be repeated with the same `idempotency_key`.
    """


class InvalidStreamName(BroadcastError, ValueError):
    """Raised if a stream's name is not a string of 1 to 255 characters, or has a control character or a surrogate."""


class InvalidPayload(BroadcastError, ValueError):
    """Raised if a payload is falsy in JavaScript, is too large, or cannot be encoded as JSON."""


class PayloadTooLarge(InvalidPayload):
    """Raised if a payload is larger than `MAX_BROADCAST_SIZE`."""


class InvalidOption(BroadcastError, ValueError):
    """Raised if an option of a call is not valid, contradicts another option, or cannot be used with the stream."""


class InvalidIdentifier(CableError, ValueError):
    """Raised if `disconnect` or `revoke` gets an identifier that no connection can have.

    `disconnect` also raises this if it gets no identifier.
    """


class ChannelError(CableError):
    """Raised if a channel class is declared or used incorrectly."""


class MissingParam(CableError, KeyError):
    """Raised by `self.params[name]` in a channel if the client has subscribed without this parameter."""


class InvalidToken(CableError):
    """Raised if a token was refused. An authenticator (`AUTHENTICATORS`) may raise it to refuse a client."""


class TokenExpired(InvalidToken):
    """Raised if a token has expired. The client gets a new token and reconnects."""


class StoreError(CableError):
    """Raised if a store could not be read or changed."""


class NotSupported(CableError):
    """Raised by functions that the engine does not support, such as `position` with `BROADCAST_ADAPTER`.

    Unlike a `StoreError`, it is raised by every call. The message names a remedy.
    """


class AsyncContextError(CableError, SynchronousOnlyOperation):
    """Raised if a sync function was called in a thread with a running event loop. Use its async version there."""
