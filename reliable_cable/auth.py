"""Who connects: session and user in a WebSocket's scope, as by Channels' `AuthMiddlewareStack`, for less."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, Final

from channels.auth import AuthMiddlewareStack
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model, load_backend
from django.contrib.sessions.backends.base import SessionBase
from django.http import parse_cookie
from django.utils.crypto import constant_time_compare

from .concurrency.outages import is_outage
from .concurrency.threads import Together

logger = logging.getLogger("reliable_cable")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

#: Users who are looked up in one thread hop, and hops at the same time: as many database connections are used.
BATCH: Final = 50
PARALLEL: Final = 2


class CableAuthMiddlewareStack:
    """Puts `cookies`, `session` and `user` into the scope of a WebSocket, in place of Channels' three middlewares.

    The same as theirs, but: a client without a session costs no thread hop and no query; those that come at the same
    time are looked up together, by one hop over one database connection; one copy of the scope and one suspended call
    are kept for each connection; and a session whose hash was made with one of `SECRET_KEY_FALLBACKS` is accepted, as
    Django does, and is left as it is. (Channels' middleware ends it.)

    Other scopes than WebSockets are left to `AuthMiddlewareStack`, which also saves sessions.

    Args:
        inner: the application.
    """

    def __init__(self, inner: Application) -> None:
        self.inner = inner
        self._stack: Application = AuthMiddlewareStack(inner)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] != "websocket":
            return await self._stack(scope, receive, send)
        scope = {**scope, "cookies": _cookies(scope)}
        if "session" not in scope:
            store = import_module(settings.SESSION_ENGINE).SessionStore
            scope["session"] = store(scope["cookies"].get(settings.SESSION_COOKIE_NAME))
        if "user" not in scope:
            try:
                scope["user"] = await get_user(scope["session"])
            except Exception as error:
                if not is_outage(error):
                    raise
                # Without a disconnect message, the client reconnects.
                logger.warning("A connection was not accepted because its user could not be looked up: %s", error)
                return await send({"type": "websocket.close"})
        await self.inner(scope, receive, send)


async def get_user(session: SessionBase) -> Any:
    """Return whom a session belongs to; an `AnonymousUser` if nobody."""
    user = await _users(session) if session.session_key else None
    if user is None:
        # Only now: the module has models.
        from django.contrib.auth.models import AnonymousUser

        return AnonymousUser()
    return user


def _cookies(scope: dict[str, Any]) -> dict[str, str]:
    for name, value in scope["headers"]:
        if name == b"cookie":
            return dict(parse_cookie(value.decode("latin1")))
    return {}


def _find_user(session: SessionBase) -> Any:
    try:
        user_id = get_user_model()._meta.pk.to_python(session[SESSION_KEY])
        path = session[BACKEND_SESSION_KEY]
    except KeyError:
        return None
    if path not in settings.AUTHENTICATION_BACKENDS:
        return None
    user: Any = load_backend(path).get_user(user_id)
    if user is not None and hasattr(user, "get_session_auth_hash") and not _verified(user, session):
        session.flush()
        return None
    return user


def _verified(user: Any, session: SessionBase) -> bool:
    known = session.get(HASH_SESSION_KEY)
    if not known:
        return False
    if constant_time_compare(known, user.get_session_auth_hash()):
        return True
    # Django would now give the session a new key and hash; here, no cookie can be sent.
    fallbacks = getattr(user, "get_session_auth_fallback_hash", tuple)
    return any(constant_time_compare(known, other) for other in fallbacks())


_users = Together(_find_user, size=BATCH, parallel=PARALLEL)
