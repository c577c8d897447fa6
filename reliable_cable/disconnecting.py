"""Ending connections from anywhere: views, signals, tasks, the shell. Knows stores only, no hub and no connection."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, Final

from django.conf import settings as django_settings

from .concurrency.background import BackgroundWorker
from .concurrency.on_commit import adefer_to_commit, call_after_commit, check_hooks, check_using, defer_to_commit
from .concurrency.threads import sync_only
from .conf import CONTROL_STREAM
from .exceptions import BroadcastError, InvalidIdentifier, StoreError
from .identity import Identity, identifier_names, identify
from .protocol.control import Revocation, encode_revocation
from .stores.engine import get_engine
from .stores.streams.base import Message

logger = logging.getLogger("reliable_cable")

#: How long, in seconds, the exit of the interpreter waits for disconnects that are not stored yet.
EXIT_PATIENCE: Final = 5.0


@sync_only("adisconnect")
def disconnect(*, reconnect: bool = False, using: str | None = None, **identifiers: Any) -> None:
    """Close every connection that has all these identifiers, on every server process, at once.

    `disconnect(user=user)`. Clients that were away may not have their sessions back, either. This does not keep anybody
    from connecting again: `connect` does.

    Inside transactions, the connections are closed after all of them have committed. If a store fails then, this is
    retried in the background until it succeeds.

    Args:
        reconnect: whether the clients are to come back, and be authenticated again; if not, they stay away until the
            page is loaded anew.
        using: wait for the transaction on this database only, if one is open there.
        identifiers: by the names in `identified_by`, the same kind of values that `connect` sets.

    Raises:
        AsyncContextError: an event loop runs in this thread; use `adisconnect`.
        InvalidIdentifier: there is none, no connection has one of that name, or its value is nobody.
        InvalidOption: there is no database `using`.
        StoreError: nothing was closed; clients that are away may have lost their sessions.
        BroadcastError: as `StoreError`. `BroadcastUncertain`, one of these, leaves open whether any was closed. Calling
            it again is safe.
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
    return _Disconnect(_condition(identifiers), reconnect=reconnect)


def disconnect_identity(condition: Identity, *, reconnect: bool) -> None:
    """Do as `disconnect`, at once, for identifiers that are texts already (identity.py)."""
    _Disconnect(condition, reconnect=reconnect).store()


def disconnect_logged_out(sender: object, user: Any = None, **kwargs: Any) -> None:
    """Receive `user_logged_out`: close the user's connections, and let the user's other devices come back.

    This raises nothing, because logging out must work while a store does not. After a failure it is retried.
    """
    text = identify(user)
    if text:
        call = _Disconnect({"user": text}, reconnect=True)
        try:
            if not defer_to_commit(call.store_on_commit, None):
                call.store()
        except Exception as error:
            call.store_later(error)


class _Disconnect:
    """One call of `disconnect`, with all its attempts.

    The time of the revocation is that of the first attempt that reached the session store. So clients that have
    connected again since then are left alone.
    """

    def __init__(self, condition: Identity, *, reconnect: bool) -> None:
        self.condition = condition
        self._reconnect = reconnect
        self._engine = get_engine()
        self._at: float | None = None

    def store(self) -> None:
        """Void the sessions, and announce the revocation to all processes."""
        if self._at is None:
            self._at = self._engine.sessions.revoke(self.condition)
        self._engine.streams.append([self._announcement(self._at)])

    async def astore(self) -> None:
        """Async twin of `store`."""
        if self._at is None:
            self._at = await self._engine.sessions.arevoke(self.condition)
        await self._engine.streams.aappend([self._announcement(self._at)])

    def _announcement(self, at: float) -> tuple[str, Message]:
        return CONTROL_STREAM, Message(encode_revocation(Revocation(self.condition, at, self._reconnect)))

    def store_on_commit(self, databases: Sequence[str]) -> None:
        """Call `store` after the commit of the transactions on these databases."""
        check_hooks(databases, "call it after the commit")
        call_after_commit(self.store, databases, failed=self.store_later)

    def store_later(self, error: Exception) -> None:
        """Retry in the background until it succeeds.

        Args:
            error: why the first attempt failed.
        """
        logger.warning("The connections of %s are not closed yet; trying again: %s", dict(self.condition), error)
        _unstored.put([self])


def _store_all(calls: Sequence[_Disconnect]) -> Sequence[_Disconnect]:
    """Store disconnects until one fails. Return the remaining ones, with the failed one last."""
    for number, call in enumerate(calls):
        try:
            call.store()
        except (BroadcastError, StoreError):
            return [*calls[number + 1 :], call]
        except Exception:
            logger.exception("The connections of %s could not be closed.", dict(call.condition))
    return ()


def _give_up(calls: Sequence[_Disconnect]) -> None:
    for call in calls:
        logger.error("The connections of %s were not closed: the process ends.", dict(call.condition))


#: Disconnects that failed after a commit or at a logout, where no error may be raised.
_unstored: BackgroundWorker[_Disconnect] = BackgroundWorker(
    "cable-disconnects", _store_all, exit_timeout=EXIT_PATIENCE, on_abandoned=_give_up
)


def _condition(identifiers: dict[str, Any]) -> dict[str, str]:
    if not identifiers:
        raise InvalidIdentifier("disconnect() needs at least one identifier: disconnect(user=user).")
    check_names(identifiers)
    for name, value in identifiers.items():
        if not identify(value) or getattr(value, "pk", value) is None:
            raise InvalidIdentifier(f"disconnect({name}={value!r}): that is nobody, or not saved.")
    return {name: identify(value) for name, value in identifiers.items()}


def check_names(names: Collection[str]) -> None:
    """Check that there are connections that these identifiers can name.

    Raises:
        InvalidIdentifier: no consumer has one of them in `identified_by`.
    """
    if not identifier_names.issuperset(names):
        _import_consumers()
    for name in names:
        if name not in identifier_names:
            raise InvalidIdentifier(
                f"Nothing is disconnected: no connection is identified by {name!r}; the names in `identified_by` of "
                f"the consumers that are known here are {', '.join(map(repr, sorted(identifier_names)))}."
            )


def _import_consumers() -> None:
    """Import the ASGI application, and with it the consumers: a shell or a worker need not have done so."""
    path = getattr(django_settings, "ASGI_APPLICATION", None)
    if path:
        with contextlib.suppress(ImportError):
            import_module(path.rpartition(".")[0])
