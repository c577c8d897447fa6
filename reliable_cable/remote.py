"""Ending connections from anywhere: views, signals, tasks, the shell. Knows stores only, no hub and no connection."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from functools import partial
from importlib import import_module
from typing import Any

from django.conf import settings as django_settings
from django.db import transaction

from .broadcasting import open_transaction
from .conf import CONTROL_STREAM
from .control import revocation
from .engine import get_engine
from .exceptions import InvalidIdentifier
from .identity import Identity, identifier_names, identify
from .threads import run_sensitive

logger = logging.getLogger("reliable_cable")


def disconnect(*, reconnect: bool = False, **identifiers: Any) -> None:
    """Close every connection that has all these identifiers, on every server process, at once.

    `disconnect(user=user)`. Clients that were away may not have their sessions back, either. Inside a transaction this
    waits for the commit, as broadcasts do. It does not keep anybody from connecting again: `connect` does.

    Args:
        reconnect: whether the clients are to come back, and be authenticated again; if not, they stay away until the
            page is loaded anew.
        identifiers: by the names in `identified_by`, the same kind of values that `connect` sets.

    Raises:
        InvalidIdentifier: there is none, no connection has one of that name, or its value is nobody.
        StoreError: nothing was closed; clients that are away may have lost their sessions.
        BroadcastError: as `StoreError`. `BroadcastUncertain`, one of these, leaves open whether any was closed. Calling
            it again is safe.
    """
    _when_committed(partial(disconnect_identity, _condition(identifiers), reconnect=reconnect))


async def adisconnect(*, reconnect: bool = False, **identifiers: Any) -> None:
    """Async twin of `disconnect`."""
    await run_sensitive(partial(disconnect, reconnect=reconnect, **identifiers))


def disconnect_identity(condition: Identity, *, reconnect: bool) -> None:
    """Do as `disconnect`, at once, for identifiers that are texts already (identity.py)."""
    engine = get_engine()
    at = engine.sessions.revoke(condition)
    engine.streams.append([(CONTROL_STREAM, revocation(condition, at, reconnect=reconnect))])


def disconnect_logged_out(sender: object, user: Any = None, **kwargs: Any) -> None:
    """Receive `user_logged_out`: close the user's connections, and let the user's other devices come back."""
    text = identify(user)
    if text:
        _when_committed(partial(_try_to_disconnect, {"user": text}))


def _try_to_disconnect(condition: Identity) -> None:
    try:
        disconnect_identity(condition, reconnect=True)
    except Exception:
        # Logging out works without us.
        logger.exception("The connections of a user who logged out could not be closed.")


def _when_committed(call: partial[None]) -> None:
    alias = open_transaction()
    if alias is None:
        call()
    else:
        transaction.on_commit(call, using=alias)


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
