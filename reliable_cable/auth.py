"""A faster replacement for Channels' `AuthMiddlewareStack`: it adds the session and the user to a WebSocket's scope."""

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, Final

from channels.auth import AuthMiddlewareStack
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model, load_backend
from django.contrib.sessions.backends.base import SessionBase
from django.http import parse_cookie

from .client_log import handshake_log
from .concurrency.outages import is_outage
from .concurrency.threads import BatchedCalls
from .logins import has_valid_hash

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

#: The most users to look up in one thread hop.
BATCH_SIZE: Final = 50
#: The most thread hops at the same time. Each uses one database connection.
PARALLEL: Final = 2


class CableAuthMiddlewareStack:
    """Adds `cookies`, `session` and `user` to the scope of a WebSocket, as Channels' `AuthMiddlewareStack` does.

    It differs from Channels' stack as follows:

    * A client without a session costs no thread hop and no query.
    * Users of clients that connect at the same time are looked up in one thread hop, over one database connection.
    * It keeps one copy of the scope and one suspended coroutine for each connection instead of three.
    * It accepts a session whose hash was made with one of `SECRET_KEY_FALLBACKS`, as Django does. Channels' middleware
      flushes such a session. This one does not change it.

    Scopes of other types are passed to `AuthMiddlewareStack`, which also saves sessions.

    Args:
        inner: the application to call.
    """

    def __init__(self, inner: Application) -> None:
        self.inner = inner
        self._stack: Application = AuthMiddlewareStack(inner)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Add the session and the user to the scope, and call the application with it."""
        if scope["type"] != "websocket":
            return await self._stack(scope, receive, send)
        scope = {**scope, "cookies": _cookies(scope)}
        if "session" not in scope:
            store = import_module(settings.SESSION_ENGINE).SessionStore
            scope["session"] = store(_session_key(scope["cookies"]))
        if "user" not in scope:
            try:
                scope["user"] = await get_user(scope["session"])
            except Exception as error:
                if not is_outage(error):
                    raise
                # Without a disconnect message, the client reconnects.
                handshake_log.warning(
                    "A connection was not accepted because its user could not be looked up: %s", error
                )
                return await send({"type": "websocket.close"})
        await self.inner(scope, receive, send)


async def get_user(session: SessionBase) -> Any:
    """Return the user of a session, or an `AnonymousUser`."""
    user = await _users(session) if session.session_key else None
    if user is None:
        # This is imported late, because that module has models, and the apps may not be ready when `auth` is imported.
        from django.contrib.auth.models import AnonymousUser

        return AnonymousUser()
    return user


def _cookies(scope: dict[str, Any]) -> dict[str, str]:
    for name, value in scope["headers"]:
        if name == b"cookie":
            return dict(parse_cookie(value.decode("latin1")))
    return {}


def _session_key(cookies: dict[str, str]) -> str | None:
    key = cookies.get(settings.SESSION_COOKIE_NAME)
    # No session key contains a NUL, and PostgreSQL refuses a query with one. A quoted cookie can contain it as "\000".
    return None if key is None or "\0" in key else key


def _find_user(session: SessionBase) -> Any:
    try:
        user_id = get_user_model()._meta.pk.to_python(session[SESSION_KEY])
        path = session[BACKEND_SESSION_KEY]
    except KeyError:
        return None
    if path not in settings.AUTHENTICATION_BACKENDS:
        return None
    user: Any = load_backend(path).get_user(user_id)
    if user is not None and not has_valid_hash(user, session.get(HASH_SESSION_KEY, "")):
        session.flush()
        return None
    return user


_users = BatchedCalls(_find_user, size=BATCH_SIZE, parallel=PARALLEL)
