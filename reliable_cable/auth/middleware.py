"""The ASGI middlewares that authenticate a WebSocket: by the Django session of a browser, or by a token."""

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
    """Adds `cookies`, `session` and `user` to the scope of a WebSocket, as Channels' `AuthMiddlewareStack` does.

    It differs from Channels' stack as follows:

    * A client without a session costs no thread hop and no query.
    * Users of clients that connect at the same time are looked up in one thread hop, over one database connection.
    * It keeps one copy of the scope and one suspended coroutine for each connection instead of three.
    * It accepts a session whose hash was made with one of `SECRET_KEY_FALLBACKS`, as Django does. Channels' middleware
      flushes such a session. This one does not change it.
    * If the settings contain `AUTHENTICATORS`, or a key that begins with `JWT_`, a client may send a token instead of a
      session cookie, see `TokenAuthMiddleware`.

    Scopes of other types are passed to `AuthMiddlewareStack`, which also saves sessions.

    Args:
        inner: the application to call.

    Raises:
        ImproperlyConfigured: the settings of tokens cannot be used.
    """

    def __init__(self, inner: Application) -> None:
        self.inner = inner
        self._stack: Application = AuthMiddlewareStack(inner)
        #: Whether it was reported that a token was ignored.
        self._reported = False
        if get_settings().reads_tokens:
            get_verifier()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Add the session and the user to the scope, and call the application with it."""
        if scope["type"] != "websocket":
            return await self._stack(scope, receive, send)
        scope = {**scope, "cookies": read_cookies(scope)}
        try:
            if get_settings().reads_tokens:
                scope = await _with_token(scope)
            elif SCOPE_KEY not in scope and not self._reported and _looks_like_token(find_token(scope)):
                self._reported = True
                handshake_log.warning(
                    "A client sent a token, which is ignored. To let clients authenticate by tokens, set JWT_SECRET."
                )
            if "session" not in scope:
                scope["session"] = open_session(session_key(scope["cookies"]))
            if "user" not in scope:
                scope["user"] = await get_user(scope["session"])
        except Exception as error:
            return await _close_after(error, send)
        await self.inner(scope, receive, send)


class TokenAuthMiddleware:
    """Authenticates WebSockets whose clients send a token (JWT), see Authentication: Tokens.

    The token is in the subprotocol `anycable-token.<token>`, the header `X-JID` or the query parameter `jid`. Its user
    replaces that of a session. `CableConsumer` refuses a client whose token is not valid, even if there is a session.
    Other consumers get an anonymous user then. They have to check the namespace and the expiry of a valid token by
    themselves. Clients without a token are passed on.

    Args:
        inner: the application to call.

    Raises:
        ImproperlyConfigured: the settings of tokens cannot be used.
    """

    def __init__(self, inner: Application) -> None:
        self.inner = inner
        get_verifier()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Verify the token, if there is one, and call the application with its user."""
        if scope["type"] == "websocket":
            try:
                scope = await _with_token(scope)
            except Exception as error:
                return await _close_after(error, send)
        await self.inner(scope, receive, send)


async def _with_token(scope: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a scope with the result of the authentication by its token, or with None if it has no token.

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
    # The session of the browser may belong to another user.
    return {**scope, "session": open_session(None), "user": found.user, SCOPE_KEY: found}


async def _close_after(error: Exception, send: Send) -> None:
    """Close a WebSocket after an outage. No `disconnect` frame is sent, so that the client reconnects.

    Raises:
        Exception: the error, if it is not caused by an outage.
    """
    if not is_outage(error):
        raise error
    handshake_log.warning("A connection was not accepted because its user could not be looked up: %s", error)
    await send({"type": "websocket.close", "reason": TRY_AGAIN})


def _looks_like_token(text: str | None) -> bool:
    return text is not None and text.startswith("eyJ") and text.count(".") == 2
