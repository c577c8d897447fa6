"""Receivers of the signals that Django sends when a login may have ended.

Each receiver sends at most one control message, after the commit. The hubs of the server processes then check the
logins of the user, or close the connections of the Django session. Other changes are found by the regular checks
(hub.login_checks).

After a logout, `disconnecting.disconnect_logged_out` also closes all connections that are identified by the user.

The model of Django sessions has no receiver for `post_delete`, because `clearsessions` would then have to load all
expired sessions.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db.models.signals import post_delete, post_save

from .concurrency.background import BackgroundWorker
from .concurrency.on_commit import call_after_commit, defer_to_commit
from .conf import CONTROL_STREAM
from .exceptions import BroadcastError, StoreError
from .logins import SESSION, USER, session_digest, user_id
from .logs import logger
from .protocol.control import LoginChange, encode_login_change
from .stores.engine import get_engine
from .stores.streams.base import Message

#: How long, in seconds, a request waits for Redis. After that, the message is sent in the background.
REQUEST_TIMEOUT: Final = 0.5

#: How long, in seconds, the interpreter delays its exit to send the remaining messages.
EXIT_TIMEOUT: Final = 5.0


def connect_receivers() -> None:
    """Connect the receivers of this module, for the user model and for its proxy models and children."""
    user_logged_in.connect(end_replaced_session, dispatch_uid="reliable_cable.login")
    user_logged_out.connect(end_logged_out_session, dispatch_uid="reliable_cable.session_logout")
    try:
        user_model = apps.get_model(settings.AUTH_USER_MODEL)
    except LookupError:
        return  # this project has no users
    for model in apps.get_models():
        if issubclass(model, user_model):
            post_save.connect(check_saved_user, sender=model, dispatch_uid="reliable_cable.user_saved")
            post_delete.connect(check_deleted_user, sender=model, dispatch_uid="reliable_cable.user_deleted")


def end_replaced_session(sender: object, request: Any = None, **kwargs: Any) -> None:
    """Close the connections of the browser's former session if `login()` flushed it, as when another user logs in."""
    if not hasattr(request, "session"):
        return
    former = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    # `login()` flushes the session of another user, and also that of the same user if its auth hash no longer matches.
    # A flushed session has no key until it is saved.
    if former and request.session.session_key is None:
        _announce(LoginChange({SESSION: session_digest(former)}))


def end_logged_out_session(sender: object, request: Any = None, **kwargs: Any) -> None:
    """Close the connections of a Django session whose user logs out, even connections not identified by the user."""
    key = getattr(getattr(request, "session", None), "session_key", None)
    if key:
        _announce(LoginChange({SESSION: session_digest(key)}))


def check_saved_user(
    sender: object, instance: Any, created: bool = False, update_fields: Collection[str] | None = None, **kwargs: Any
) -> None:
    """Request a check of a saved user's logins, if the password may have changed or the user is not active.

    Other changes cause no message, because a project may save the user in every request.
    """
    if not created and _may_end_logins(instance, update_fields):
        _announce(LoginChange({USER: user_id(instance)}))


def check_deleted_user(sender: object, instance: Any, **kwargs: Any) -> None:
    """Request a check of a deleted user's logins."""
    _announce(LoginChange({USER: user_id(instance)}))


def _may_end_logins(user: Any, saved: Collection[str] | None) -> bool:
    if saved is not None and "password" in saved:
        return True
    if saved is None and getattr(user, "_password", None) is not None:
        return True  # `set_password` sets this attribute, and `save` removes it after the signal
    return (saved is None or "is_active" in saved) and not getattr(user, "is_active", True)


def _announce(change: LoginChange) -> None:
    """Send a change to all processes after the commit. Errors are just logged: regular checks find the change, too."""
    send = partial(_send, change)
    on_commit = partial(call_after_commit, send, failed=_report, remedy="end the login after the commit")
    try:
        if not defer_to_commit(on_commit, None):
            send()
    except Exception as error:
        _report(error)


def _send(change: LoginChange) -> None:
    """Append a change to the control stream. If Redis does not respond soon, retry in the background."""
    if get_engine().may_block:
        if not _pending.put_and_wait([change], REQUEST_TIMEOUT):
            _report("Redis does not respond; the message will be retried")
    else:
        _append([change])


def _append(changes: Sequence[LoginChange]) -> None:
    get_engine().streams.append([(CONTROL_STREAM, Message(encode_login_change(change))) for change in changes])


def _append_all(changes: Sequence[LoginChange]) -> Sequence[LoginChange]:
    """Append changes to the control stream. Return the changes to retry. A repeated message does no harm."""
    try:
        _append(changes)
    except (BroadcastError, StoreError):
        return changes
    return ()


#: The worker that sends changes to Redis in the background.
_pending: BackgroundWorker[LoginChange] = BackgroundWorker(
    "cable-login-changes", _append_all, exit_timeout=EXIT_TIMEOUT
)


def _report(error: Exception | str) -> None:
    logger.warning(
        "The end of a login could not be announced to the server processes. It will be noticed within "
        "REAUTHENTICATE_INTERVAL: %s",
        error,
    )
