"""ASGI middlewares that authenticate a WebSocket by the Django session of a browser, or by a token."""

from collections.abc import Awaitable, Callable
from typing import Any

from channels.auth import AuthMiddlewareStack

from reliable_cable.client_log import handshake_log
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.conf import get_settings
from reliable_cable.exceptions import InvalidToken, TokenExpired
from reliable_cable.protocol.constants import TRY_AGAIN, DisconnectReason

from .sessions import get_user, open_session, read_cookies, session_key
from .tokens import find_token
from .verification import SCOPE_KEY, TokenAuthentication, get_verifier

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


class CableAuthMiddlewareStack:
    """An ASGI middleware that adds `cookies`, `session` and `user` to the scope of a WebSocket.

    It replaces Channels' `AuthMiddlewareStack`, and differs from that stack as follows:

    * A client without a Django session needs no thread and no query.
    * If many clients connect at the same time, a thread looks up many users, one by one, over one database connection.
    * For each connection, it keeps one copy of the scope and one suspended coroutine in memory. Channels' stack keeps
      three of each.
    * It accepts a Django session whose hash was made with one of `SECRET_KEY_FALLBACKS`, as Django does. Channels'
      stack flushes such a session.
    * If the settings contain `AUTHENTICATORS`, or a key that begins with `JWT_`, a client may send a token instead of a
      session cookie (see `TokenAuthMiddleware`).

    Scopes of other types are passed to Channels' stack.

    Args:
        inner: the ASGI application that is called with the new scope.

    Raises:
        ImproperlyConfigured: the settings for tokens need a package that is not installed, or name an authenticator
            that cannot be imported.
    """

    def __init__(self, inner: Application) -> None:
        self.inner = inner
        self._stack: Application = AuthMiddlewareStack(inner)
        #: Whether a warning about an ignored token was logged.
        self._reported = False
        if get_settings().reads_tokens:
            get_verifier()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Add the Django session and the user to the scope, and call the application with the new scope."""
        if scope["type"] != "websocket":
            return await self._stack(scope, receive, send)
        scope = {**scope, "cookies": read_cookies(scope)}
        try:
            if get_settings().reads_tokens:
                scope = await with_token(scope)
            elif SCOPE_KEY not in scope and not self._reported and _looks_like_token(find_token(scope)):
                self._reported = True
                handshake_log.warning(
                    "A client sent a token, which was ignored. To authenticate clients by tokens, set JWT_SECRET."
                )
            if "session" not in scope:
                scope["session"] = open_session(session_key(scope["cookies"]))
            if "user" not in scope:
                scope["user"] = await get_user(scope["session"])
        except Exception as error:
            return await _close_after(error, send)
        await self.inner(scope, receive, send)


class TokenAuthMiddleware:
    """An ASGI middleware that authenticates WebSocket clients that send a token (JWT). See Authentication: Tokens.

    A client sends its token in the subprotocol `anycable-token.<token>`, the header `X-JID` or the query parameter
    `jid`. The user of the token replaces the user of a Django session. If the token is not valid, `CableConsumer`
    refuses the client, even if the client has a Django session. Other consumers get an anonymous user. Such consumers
    also have to check the namespace and the expiry of a valid token themselves. The scope of a client without a token
    keeps its user.

    Args:
        inner: the ASGI application that is called with the new scope.

    Raises:
        ImproperlyConfigured: the settings for tokens need a package that is not installed, or name an authenticator
            that cannot be imported.
    """

    def __init__(self, inner: Application) -> None:
        self.inner = inner
        get_verifier()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Verify the token, if the client sent one, and call the application with the new scope."""
        if scope["type"] == "websocket":
            try:
                scope = await with_token(scope)
            except Exception as error:
                return await _close_after(error, send)
        await self.inner(scope, receive, send)


async def with_token(scope: dict[str, Any]) -> dict[str, Any]:
    """Verify the token of a handshake. Return a copy of the scope with the result, or with None if there is no token.

    A scope that already has a result is returned unchanged.

    Raises:
        Exception: the user or the keys could not be looked up, or an authenticator failed.
    """
    if SCOPE_KEY in scope:
        return scope
    token = find_token(scope)
    if token is None:
        return {**scope, SCOPE_KEY: None}
    try:
        found = await get_verifier().authenticate(token, scope)
    except InvalidToken as error:
        if isinstance(error, TokenExpired):
            handshake_log.info("A client was refused, because its token has expired.")
            found = TokenAuthentication(refusal=DisconnectReason.TOKEN_EXPIRED)
        else:
            handshake_log.warning("A client was refused, because its token %s.", error)
            found = TokenAuthentication(refusal=DisconnectReason.UNAUTHORIZED)
    # The browser's Django session may belong to another user, so it is replaced by an empty session.
    return {**scope, "session": open_session(None), "user": found.user, SCOPE_KEY: found}


async def _close_after(error: Exception, send: Send) -> None:
    """Close a WebSocket that cannot be authenticated because of an outage.

    No `disconnect` frame is sent, so that the client reconnects.

    Raises:
        Exception: the error was not caused by an outage.
    """
    if not is_outage(error):
        raise error
    handshake_log.warning("A client was not accepted, because it could not be authenticated: %s", error)
    await send({"type": "websocket.close", "reason": TRY_AGAIN})


def _looks_like_token(text: str | None) -> bool:
    return text is not None and text.startswith("eyJ") and text.count(".") == 2
