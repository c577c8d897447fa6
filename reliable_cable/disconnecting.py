"""Disconnects and revocations from anywhere: views, signals, tasks, the shell.

This module writes to the stores only. The hubs of the server processes are notified by the stores, and close their
connections or end subscriptions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, Final, Protocol

from django.conf import settings as django_settings

from .concurrency.background import BackgroundWorker
from .concurrency.on_commit import adefer_to_commit, call_after_commit, check_hooks, check_using, defer_to_commit
from .concurrency.threads import sync_only
from .conf import CONTROL_STREAM
from .exceptions import BroadcastError, InvalidIdentifier, InvalidOption, StoreError
from .identity import CHANNEL, STREAM, Identity, identifier_names, identify, in_namespace, reason_against
from .logs import logger
from .namespaces import current_namespace
from .protocol.constants import REVOKED
from .protocol.control import (
    Revocation,
    SubscriptionRevocation,
    encode_revocation,
    encode_subscription_revocation,
)
from .stores.engine import get_engine
from .stores.streams.base import Message
from .validation import encode_json, resolve_stream

#: How long, in seconds, the exit of the interpreter waits for disconnects that are being retried.
EXIT_TIMEOUT: Final = 5.0

#: How long, in seconds, a logout or a commit waits for Redis. If that takes longer, it goes on in the background.
REQUEST_TIMEOUT: Final = 0.5


@sync_only("adisconnect")
def disconnect(*, reconnect: bool = False, using: str | None = None, **identifiers: Any) -> None:
    """Close every connection that has all the given identifiers, on every server process: `disconnect(user=user)`.

    The sessions of matching clients that are not connected now become invalid, too. All of these clients can connect
    again; to prevent this, reject them in `connect`.

    Inside transactions, the connections are closed after all of them have committed. If a store fails then, the
    disconnect is retried in the background until it succeeds.

    Args:
        reconnect: whether the clients reconnect, and are authenticated again. If False, they stay disconnected until
            the page is reloaded.
        using: wait for a transaction on this database only.
        identifiers: values by the names in `identified_by`, of the same types as the values that `connect` sets.

    Raises:
        AsyncContextError: an event loop runs in this thread. Use `adisconnect`.
        InvalidIdentifier: there are no identifiers, no connection has one of that name, or no connection can have the
            value, for example because it is a primary key in place of a user.
        InvalidOption: `using` names no database.
        StoreError: no connection was closed. Clients that were not connected may have lost their sessions.
        BroadcastError: as for `StoreError`. The subclass `BroadcastUncertain` leaves open whether any connection was
            closed. Calling this function again is safe.
    """
    call = _prepare(identifiers, reconnect, using)
    if not defer_to_commit(call.store_on_commit, using):
        call.store()


async def adisconnect(*, reconnect: bool = False, using: str | None = None, **identifiers: Any) -> None:
    """Async twin of `disconnect`. It recognises the same transactions as `abroadcast`."""
    call = _prepare(identifiers, reconnect, using)
    if not await adefer_to_commit(call.store_on_commit, using):
        await call.astore()


def _prepare(identifiers: dict[str, Any], reconnect: bool, using: str | None) -> _Disconnect:
    check_using(using)
    if not identifiers:
        raise InvalidIdentifier("disconnect() needs at least one identifier: disconnect(user=user).")
    return _Disconnect(_condition("disconnect", identifiers), reconnect=reconnect)


class NamedChannel(Protocol):
    """A channel class (see `channel.Channel`)."""

    @property
    def name(self) -> str:
        """The name that clients use for the channel."""

    def is_registered(self) -> bool:
        """Return whether clients can subscribe to a channel of this name."""


@sync_only("arevoke")
def revoke(
    *,
    channel: NamedChannel | None = None,
    stream: str | None = None,
    reason: str = REVOKED,
    using: str | None = None,
    **identifiers: Any,
) -> None:
    """End subscriptions, on every server process: `revoke(user=user, channel=ChatChannel)`.

    This ends all subscriptions to a channel, or all that receive a stream. Without identifiers, it ends those of all
    connections. They end at once, and each client is sent the reason. A client of the extended protocol then has to
    reconnect. When it subscribes again, the channel's `subscribed` decides. Sessions of clients that are not connected
    now are restored without these subscriptions. If `subscribed` is called after this call, the subscription remains.

    Inside transactions, this happens after all of them have committed. If a store fails then, the call is retried in
    the background until it succeeds.

    Args:
        channel: the channel class. Give either a channel or a stream.
        stream: the name of a stream. `ChatChannel.broadcasting_for(room)` returns the name for a target.
        reason: a text that the clients are sent: `{"type": "revoked", "reason": reason}`.
        using: wait for a transaction on this database only.
        identifiers: the identifiers of the connections, as for `disconnect`.

    Raises:
        AsyncContextError: an event loop runs in this thread. Use `arevoke`.
        InvalidIdentifier: no connection has an identifier of that name, or no connection can have the value.
        InvalidOption: there is neither a channel nor a stream, or there are both, or an option has a wrong type.
        InvalidStreamName: the name of the stream is not valid.
        StoreError: no subscription was ended. Sessions of clients that were not connected may have lost subscriptions.
        BroadcastError: as for `StoreError`. The subclass `BroadcastUncertain` leaves open whether any subscription was
            ended. Calling this function again is safe.
    """
    call = _prepare_revoke(channel, stream, reason, identifiers, using)
    if not defer_to_commit(call.store_on_commit, using):
        call.store()


async def arevoke(
    *,
    channel: NamedChannel | None = None,
    stream: str | None = None,
    reason: str = REVOKED,
    using: str | None = None,
    **identifiers: Any,
) -> None:
    """Async twin of `revoke`. It recognises the same transactions as `abroadcast`."""
    call = _prepare_revoke(channel, stream, reason, identifiers, using)
    if not await adefer_to_commit(call.store_on_commit, using):
        await call.astore()


def _prepare_revoke(
    channel: NamedChannel | None, stream: str | None, reason: str, identifiers: dict[str, Any], using: str | None
) -> _Revoke:
    check_using(using)
    try:
        encode_json(reason)
    except ValueError:
        reason = ""
    if not isinstance(reason, str) or not reason:
        raise InvalidOption("revoke() needs a reason that is a string without surrogates.")
    if (channel is None) == (stream is None):
        raise InvalidOption("revoke() needs either a channel or a stream: revoke(user=user, channel=ChatChannel).")
    if stream is not None:
        scope = {STREAM: resolve_stream(stream)}
    elif not (isinstance(channel, type) and hasattr(channel, "is_registered")):
        raise InvalidOption(f"revoke(channel={channel!r}): the channel must be a channel class.")
    elif not channel.is_registered():
        raise InvalidOption(
            f"revoke(channel={channel.__name__}): no client can subscribe to this class. Nothing was revoked. Call "
            "revoke() for each channel that inherits from it."
        )
    else:
        scope = {CHANNEL: channel.name}
    return _Revoke({**_condition("revoke", identifiers), **scope}, reason)


def disconnect_identity(condition: Identity, *, reconnect: bool) -> None:
    """Close connections as `disconnect` does, without waiting for a commit.

    Args:
        condition: the identifiers as texts (identity.py).
        reconnect: as for `disconnect`.
    """
    _Disconnect(condition, reconnect=reconnect).store()


async def adisconnect_identity(condition: Identity, *, reconnect: bool) -> None:
    """Async twin of `disconnect_identity`."""
    await _Disconnect(condition, reconnect=reconnect).astore()


def disconnect_logged_out(sender: object, user: Any = None, **kwargs: Any) -> None:
    """Close the connections of a user who logged out, and let the user's other devices reconnect.

    This is the receiver of `user_logged_out`. Errors of stores are not raised, because users must be able to log
    out while a store fails. After a failure, the disconnect is retried. A Redis that hangs delays the logout by
    `REQUEST_TIMEOUT` at most.
    """
    text = identify(user)
    if text:
        call = _Disconnect({"user": text}, reconnect=True)
        try:
            if not defer_to_commit(call.store_on_commit, None):
                call.store_soon()
        except Exception as error:
            call.store_later(error)


class _Disconnect:
    """One call of `disconnect` in the current namespace, and its retries.

    All attempts use the time of the first one that reached the session store. So a retry does not close connections
    that were opened after that time.
    """

    def __init__(self, condition: Identity, *, reconnect: bool) -> None:
        self.condition = in_namespace(condition, current_namespace())
        self._reconnect = reconnect
        self._engine = get_engine()
        self._at: float | None = None
        #: The error of the last attempt in the background.
        self.error: Exception | None = None

    def store(self) -> None:
        """Make the sessions invalid, and announce the disconnect to all processes."""
        if self._at is None:
            self._at = self._engine.sessions.revoke(self.condition)
        self._engine.streams.append([self._announcement(self._at)])

    async def astore(self) -> None:
        """Async twin of `store`."""
        if self._at is None:
            self._at = await self._engine.sessions.arevoke(self.condition)
        await self._engine.streams.aappend([self._announcement(self._at)])

    def _announcement(self, at: float) -> tuple[str, Message]:
        return CONTROL_STREAM, Message(self._encode(at))

    def _encode(self, at: float) -> str:
        return encode_revocation(Revocation(self.condition, at, self._reconnect))

    def store_on_commit(self, databases: Sequence[str]) -> None:
        """Call `store_soon` after the commit of the transactions on these databases."""
        check_hooks(databases, "call it after the commit")
        call_after_commit(self.store_soon, databases, failed=self.store_later)

    def store_soon(self) -> None:
        """Call `store`. If a remote store does not respond within `REQUEST_TIMEOUT`, go on in the background.

        Raises:
            StoreError, BroadcastError: a store that is not remote has failed.
        """
        if not self._engine.may_block:
            self.store()
        elif not _pending.put_and_wait([self], REQUEST_TIMEOUT):
            logger.warning("The %s are not closed yet; trying again: %s", self, self.error or "Redis does not respond")

    def store_later(self, error: Exception) -> None:
        """Retry in the background until an attempt succeeds.

        Args:
            error: the error of the first attempt.
        """
        logger.warning("The %s are not closed yet; trying again: %s", self, error)
        _pending.put([self])

    def __str__(self) -> str:
        return f"connections of {dict(self.condition)}"


class _Revoke(_Disconnect):
    """One call of `revoke` and its retries.

    Its condition includes the channel or the stream, so that session stores can store it as they store a disconnect.
    """

    def __init__(self, condition: Identity, reason: str) -> None:
        super().__init__(condition, reconnect=True)
        self._reason = reason

    def _encode(self, at: float) -> str:
        scope = {name: text for name, text in self.condition.items() if name in (CHANNEL, STREAM)}
        # These include the namespace, which is a part of the identity of a connection.
        connections = {name: text for name, text in self.condition.items() if name not in scope}
        return encode_subscription_revocation(SubscriptionRevocation(connections, scope, at, self._reason))

    def __str__(self) -> str:
        return f"subscriptions of {dict(self.condition)}"


def _store_all(calls: Sequence[_Disconnect]) -> Sequence[_Disconnect]:
    """Store disconnects until one fails. Return those that were not stored, with the failed one last."""
    for number, call in enumerate(calls):
        try:
            call.store()
        except (BroadcastError, StoreError) as error:
            call.error = error
            return [*calls[number + 1 :], call]
        except Exception:
            logger.exception("The %s could not be closed.", call)
    return ()


def _give_up(calls: Sequence[_Disconnect]) -> None:
    for call in calls:
        logger.error("The %s were not closed, because the process exits.", call)


#: Disconnects and revocations that failed after a commit or at a logout, where no error may be raised.
_pending: BackgroundWorker[_Disconnect] = BackgroundWorker(
    "cable-disconnects", _store_all, exit_timeout=EXIT_TIMEOUT, on_abandoned=_give_up
)


def _condition(function: str, identifiers: dict[str, Any]) -> dict[str, str]:
    check_names(identifiers)
    for name, value in identifiers.items():
        reason = reason_against(name, value)
        if reason:
            raise InvalidIdentifier(f"{function}({name}=…) got a value of the type {type(value).__name__}: {reason}.")
    return {name: identify(value) for name, value in identifiers.items()}


def check_names(names: Collection[str]) -> None:
    """Check that connections have identifiers of these names.

    Raises:
        InvalidIdentifier: no consumer has one of the names in `identified_by`.
    """
    if not identifier_names.issuperset(names):
        _import_consumers()
    for name in names:
        if name not in identifier_names:
            raise InvalidIdentifier(
                f"Nothing was done: no connection is identified by {name!r}. The names in `identified_by` of "
                f"the consumers in this process are {', '.join(map(repr, sorted(identifier_names)))}."
            )


def _import_consumers() -> None:
    """Import the ASGI application, which imports the consumers. A shell or a worker may not have imported it."""
    path = getattr(django_settings, "ASGI_APPLICATION", None)
    if path:
        with contextlib.suppress(ImportError):
            import_module(path.rpartition(".")[0])
