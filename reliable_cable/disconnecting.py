"""`disconnect` and `revoke`, which any code can call, such as views, signal receivers, tasks and the shell.

They only write to the stores. The stores notify the hubs of the server processes, which close connections or end
subscriptions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, Final, Protocol

from django.conf import settings as django_settings

from .concurrency.background import BackgroundWorker
from .concurrency.on_commit import CALL_LATER, adefer_to_commit, call_after_commit, check_using, defer_to_commit
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
from .stores.engine import get_engine, require_own_servers
from .stores.streams.base import Message
from .validation import encode_json, resolve_stream

#: How long, in seconds, the interpreter delays its exit to finish the disconnects that are being retried.
EXIT_TIMEOUT: Final = 5.0

#: How long, in seconds, a logout or a commit waits for Redis. After that, the disconnect is retried in the background.
REQUEST_TIMEOUT: Final = 0.5


@sync_only("adisconnect")
def disconnect(*, reconnect: bool = False, using: str | None = None, **identifiers: Any) -> None:
    """Close all connections with the given identifiers in all server processes, as in `disconnect(user=user)`.

    Sessions with these identifiers cannot be restored any more. This includes the sessions of clients that are not
    connected now. The clients can connect again, unless `connect` refuses them.

    Inside transactions, the connections are closed after all of them have committed. If a store fails after the commit,
    the disconnect is retried in the background until it succeeds.

    Args:
        reconnect: whether the clients reconnect automatically, and are authenticated again. If False, the clients stay
            disconnected until the web page is reloaded.
        using: wait only for a transaction on the database with this alias.
        identifiers: values for one or more of the names in `identified_by`, of the types that `connect` sets.

    Raises:
        AsyncContextError: an event loop runs in this thread. Use `adisconnect`.
        InvalidIdentifier: no identifier was given, or no connection can have an identifier with the given name or
            value. An example is a primary key in place of a user.
        InvalidOption: `using` names no database.
        StoreError: no connection was closed. Clients that are not connected may have lost their sessions.
        BroadcastError: as for `StoreError`. If it is the subclass `BroadcastUncertain`, connections may have been
            closed. This function can safely be called again.
    """
    call = _prepare(identifiers, reconnect, using)
    if not defer_to_commit(call.store_on_commit, using):
        call.store()


async def adisconnect(*, reconnect: bool = False, using: str | None = None, **identifiers: Any) -> None:
    """Async version of `disconnect`. It recognises the same transactions as `abroadcast`."""
    call = _prepare(identifiers, reconnect, using)
    if not await adefer_to_commit(call.store_on_commit, using):
        await call.astore()


def _prepare(identifiers: dict[str, Any], reconnect: bool, using: str | None) -> _Disconnect:
    check_using(using)
    if not identifiers:
        raise InvalidIdentifier("disconnect() needs at least one identifier: disconnect(user=user).")
    return _Disconnect(_condition("disconnect", identifiers), reconnect=reconnect)


class NamedChannel(Protocol):
    """The part of a channel class that `revoke` uses (see `channel.Channel`)."""

    @property
    def name(self) -> str:
        """The name of the channel for clients."""

    def is_registered(self) -> bool:
        """Return whether clients can subscribe to a channel with the name of this class."""


@sync_only("arevoke")
def revoke(
    *,
    channel: NamedChannel | None = None,
    stream: str | None = None,
    reason: str = REVOKED,
    using: str | None = None,
    **identifiers: Any,
) -> None:
    """End subscriptions in all server processes, as in `revoke(user=user, channel=ChatChannel)`.

    This ends all subscriptions to a channel, or all subscriptions that receive a stream. If identifiers are given, only
    subscriptions of connections with these identifiers end. The clients of ended subscriptions receive the reason.
    Clients of the extended protocol must then reconnect. When a client subscribes again, `subscribed` of the channel
    decides.

    Sessions of clients that are not connected now will be restored without these subscriptions. A subscription is not
    ended if its `subscribed` was called more than one second after this function. Clocks are not exact, so within this
    second, a new subscription may be ended and made again.

    Inside transactions, the subscriptions are ended after all of the transactions have committed. If a store fails
    after the commit, the revocation is retried in the background until it succeeds.

    Args:
        channel: the channel class. Give either a channel or a stream.
        stream: the name of a stream. `ChatChannel.broadcasting_for(room)` returns the name for a target.
        reason: a string for the clients, which receive `{"type": "revoked", "reason": reason}`.
        using: wait only for a transaction on the database with this alias.
        identifiers: the identifiers of the connections, as for `disconnect`.

    Raises:
        AsyncContextError: an event loop runs in this thread. Use `arevoke`.
        InvalidIdentifier: no connection can have an identifier with the given name or value.
        InvalidOption: not exactly one of `channel` and `stream` was given, or an option has a wrong type.
        InvalidStreamName: the name of the stream is not valid.
        NotSupported: clients are connected to anycable-go (`BROADCAST_ADAPTER`).
        StoreError: no subscription was ended. Clients that are not connected may have lost subscriptions.
        BroadcastError: as for `StoreError`. After the subclass `BroadcastUncertain`, subscriptions may have been ended.
            This function can safely be called again.
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
    """Async version of `revoke`. It recognises the same transactions as `abroadcast`."""
    call = _prepare_revoke(channel, stream, reason, identifiers, using)
    if not await adefer_to_commit(call.store_on_commit, using):
        await call.astore()


def _prepare_revoke(
    channel: NamedChannel | None, stream: str | None, reason: str, identifiers: dict[str, Any], using: str | None
) -> _Revoke:
    check_using(using)
    require_own_servers("revoke", "Call disconnect(reconnect=True): its clients reconnect, and subscribe again.")
    try:
        encode_json(reason)
    except ValueError:
        reason = ""
    if not isinstance(reason, str) or not reason:
        raise InvalidOption("revoke() needs a reason, which must be a non-empty string without surrogates.")
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
    """Close connections now, in all server processes. Unlike `disconnect`, this does not wait for a commit.

    Args:
        condition: the identifiers as strings (see identity.py).
        reconnect: whether the clients reconnect automatically.
    """
    _Disconnect(condition, reconnect=reconnect).store()


async def adisconnect_identity(condition: Identity, *, reconnect: bool) -> None:
    """Async version of `disconnect_identity`."""
    await _Disconnect(condition, reconnect=reconnect).astore()


def disconnect_logged_out(sender: object, user: Any = None, **kwargs: Any) -> None:
    """Close the connections of a user who logged out. The user's other devices reconnect.

    This is a receiver of `user_logged_out`. It does not raise errors of stores, because users must be able to log out
    while a store fails. After a failure, the disconnect is retried. If Redis does not respond, the logout is delayed by
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
    """A call to `disconnect` in the current namespace, and its retries.

    The time of a disconnect is the time at which the session store was first changed. Retries use the same time. So
    they do not close connections that were opened more than `CLOCK_MARGIN` seconds later.
    """

    def __init__(self, condition: Identity, *, reconnect: bool) -> None:
        self.condition = in_namespace(condition, current_namespace())
        self._reconnect = reconnect
        self._engine = get_engine()
        self._at: float | None = None
        #: The error of the last failed attempt in the background; None if no attempt has failed.
        self.error: Exception | None = None

    def store(self) -> None:
        """Invalidate the sessions in the session store, then send the disconnect to all server processes."""
        if self._at is None:
            self._at = self._engine.sessions.revoke(self.condition)
        self._engine.streams.append([self._announcement(self._at)])

    async def astore(self) -> None:
        """Async version of `store`."""
        if self._at is None:
            self._at = await self._engine.sessions.arevoke(self.condition)
        await self._engine.streams.aappend([self._announcement(self._at)])

    def _announcement(self, at: float) -> tuple[str, Message]:
        return CONTROL_STREAM, Message(self._encode(at))

    def _encode(self, at: float) -> str:
        return encode_revocation(Revocation(self.condition, at, self._reconnect))

    def store_on_commit(self, databases: Sequence[str]) -> None:
        """Call `store_soon` after the commit of the transactions on these databases."""
        call_after_commit(self.store_soon, databases, failed=self.store_later, remedy=CALL_LATER)

    def store_soon(self) -> None:
        """Call `store`. If Redis does not respond within `REQUEST_TIMEOUT`, retry in the background.

        Raises:
            StoreError: a store other than Redis has failed.
            BroadcastError: a store other than Redis has failed.
        """
        if not self._engine.may_block:
            self.store()
        elif not _pending.put_and_wait([self], REQUEST_TIMEOUT):
            logger.warning("The %s are not closed yet; trying again: %s", self, self.error or "Redis does not respond")

    def store_later(self, error: Exception) -> None:
        """Log the error of the first attempt, and retry in the background until an attempt succeeds."""
        logger.warning("The %s are not closed yet; trying again: %s", self, error)
        _pending.put([self])

    def __str__(self) -> str:
        return f"connections of {dict(self.condition)}"


class _Revoke(_Disconnect):
    """A call to `revoke`, and its retries.

    The condition includes the channel or the stream. So session stores can store it in the same way as a disconnect.
    """

    def __init__(self, condition: Identity, reason: str) -> None:
        super().__init__(condition, reconnect=True)
        self._reason = reason

    def _encode(self, at: float) -> str:
        scope = {name: text for name, text in self.condition.items() if name in (CHANNEL, STREAM)}
        # `connections` includes the namespace, because the namespace is a part of a connection's identity.
        connections = {name: text for name, text in self.condition.items() if name not in scope}
        return encode_subscription_revocation(SubscriptionRevocation(connections, scope, at, self._reason))

    def __str__(self) -> str:
        return f"subscriptions of {dict(self.condition)}"


def _store_all(calls: Sequence[_Disconnect]) -> Sequence[_Disconnect]:
    """Store disconnects until a store fails. Return the disconnects to retry, with the failed one at the end."""
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


#: The worker for disconnects and revocations after a commit or a logout. It retries them, and raises no errors.
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
    """Check that connections can have identifiers with these names.

    Raises:
        InvalidIdentifier: one of the names is in `identified_by` of no consumer.
    """
    if not identifier_names.issuperset(names):
        _import_consumers()
    for name in names:
        if name not in identifier_names:
            raise InvalidIdentifier(
                f"Nothing was done, because no connection is identified by {name!r}. The names in `identified_by` of "
                f"the consumers in this process are {', '.join(map(repr, sorted(identifier_names)))}."
            )


def _import_consumers() -> None:
    """Import the ASGI application and its consumers, which a shell or a worker may not have imported yet."""
    path = getattr(django_settings, "ASGI_APPLICATION", None)
    if path:
        with contextlib.suppress(ImportError):
            import_module(path.rpartition(".")[0])
