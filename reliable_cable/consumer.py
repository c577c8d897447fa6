"""`CableConsumer`, which handles the ASGI messages of WebSockets."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from contextvars import Context, copy_context
from functools import partial
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs

from channels.consumer import AsyncConsumer, get_handler_name
from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from . import origins
from .auth.admission import Admission, admit
from .client_log import handshake_log
from .concurrency.outages import is_outage
from .concurrency.retrying import BACKGROUND_RETRY_DELAY, retry
from .conf import get_settings
from .connection.anycable.calls import Hooks
from .connection.anycable.service import EXTENSION as RPC_EXTENSION
from .connection.commands import Commands
from .connection.connection import Connection
from .connection.handlers import REFUSALS, invoke_isolated, overridden, refuses, run_calls, run_in_context
from .connection.lifecycle import end_connection, open_connection
from .connection.reading import Reading
from .hub.current import close_hub as close_hub
from .hub.current import get_hub as get_hub
from .hub.draining import install_drain, refuses_connections
from .hub.hub import Hub
from .identity import identifier_names, identity_of, in_namespace
from .logs import logger
from .middleware import set_socket_id
from .namespaces import enter_namespace
from .protocol import constants, messages
from .protocol.constants import DisconnectReason
from .protocol.handshake import requested_ping_interval, requested_session
from .servers import transport_for

#: The context manager for handlers if `around_command` is not overridden. It does nothing.
_UNCHANGED = nullcontext()

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

#: How long, in seconds, `connect` may take. If it takes longer, the handshake is refused, and the client reconnects.
CONNECT_TIMEOUT: Final = 10.0

#: The reasons that `connect` can give when it refuses a client. They tell the client not to reconnect automatically.
REJECTION_REASONS: Final = (DisconnectReason.UNAUTHORIZED, DisconnectReason.TOKEN_EXPIRED)


class CableConsumer(AsyncConsumer):  # type: ignore[misc]  # Channels is untyped
    """A Channels consumer that speaks the extended Action Cable protocol. Subclass it to authenticate connections.

    `connect` may set attributes such as `self.user`, which channels read as `self.connection.user`. It may refuse the
    connection with `self.reject_connection()`.

    A subclass that sets `channel_layer_alias` receives messages from that channel layer, as other Channels consumers
    do. It then has `self.channel_layer` and `self.channel_name` in `connect` and later. For each message type, it must
    define an `async def` method.
    """

    #: The attributes that identify the owner of a connection. A session is restored only if none of them has changed.
    identified_by: ClassVar[tuple[str, ...]] = ("user",)
    #: The origins of the web pages that may connect. `"*"` allows all, and None allows this site. See
    #: `origins.is_allowed`. An example is `["https://example.com", "https://*.example.org"]`.
    allowed_origins: Sequence[str] | None = None
    #: The alias of the channel layer from which the consumer receives messages; None if it uses no channel layer.
    channel_layer_alias: str | None = None

    scope: dict[str, Any]
    user: Any = None
    #: The verified claims of the client's token; None if it has sent no token.
    token: Mapping[str, Any] | None = None

    _namespace = ""
    _session: Connection | None = None
    #: The time when the client was authenticated, by the monotonic clock of `Engine.session_clock`.
    _authenticated = 0.0
    #: The reason for which `connect` refused the connection; None if it was not refused.
    _rejection: DisconnectReason | None = None
    #: Whether the client was accepted after `connect`.
    _accepted = False
    #: A future that is completed after the welcome; None without a channel layer. Its result is the context in which
    #: messages from the channel layer are handled. Messages that arrive earlier wait for it.
    _connected: asyncio.Future[Context] | None = None

    def __init__(self, *, allowed_origins: Sequence[str] | None = None) -> None:
        if allowed_origins is not None:
            self.allowed_origins = allowed_origins

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_attributes(cls)
        identifier_names.update(cls.identified_by)
        if inspect.isgeneratorfunction(cls.around_command) or inspect.isasyncgenfunction(cls.around_command):
            raise TypeError(
                f"{cls.__qualname__}.around_command is a generator; decorate it with @contextmanager, or with "
                "@asynccontextmanager if it is async."
            )

    @property
    def namespace(self) -> str:
        """The namespace of the connection, from the setting `NAMESPACE`; `""` if it has none."""
        return self._namespace

    @property
    def session(self) -> Connection | None:
        """The connection; None until the client has been welcomed, and after the connection has ended."""
        return self._session

    # -- for subclasses -----------------------------------------------------------------------------------------------

    def connect(self) -> Any:
        """Authenticate the client, and set the attributes in `identified_by`. This can be `def` or `async def`.

        To refuse the client, call `reject_connection()`, return False, or raise `ObjectDoesNotExist`,
        `PermissionDenied`, `ValidationError` or `Http404`.

        If the client has sent a token, its identifiers are already set, and `self.token` contains its claims. Clients
        with an invalid token are refused before this is called.
        """

    def disconnect(self, code: int) -> Any:
        """Clean up after the connection has ended and `unsubscribed` of its channels has been called.

        This can be `def` or `async def`.

        Args:
            code: the WebSocket close code.
        """

    def around_command(self) -> AbstractContextManager[Any] | AbstractAsyncContextManager[Any]:
        """Return a context manager for handlers, which can set a tenant or a language for them.

        Override this with a generator method that is decorated with `contextmanager` or `asynccontextmanager`. The
        manager is entered once for a handler and the check before it (`before_subscribe` or `before_action`). It is
        also entered for `snapshot`, `authorize_presence`, `handle_error`, `disconnect`, handlers of the channel layer,
        and checks of logins. `connect` runs without the manager, and may set attributes that the manager uses.

        For a sync handler, a sync manager runs in the thread of the handler. So it can change the thread's database
        connections and undo the change. For an async handler, a sync manager runs on the event loop. An async manager
        always runs on the event loop. On the event loop, a manager should change only context variables.
        """
        return _UNCHANGED

    def reject_connection(self, reason: str = DisconnectReason.UNAUTHORIZED) -> None:
        """Refuse the connection. Call this in `connect`. The client receives the reason, and does not reconnect.

        Args:
            reason: `"unauthorized"` or `"token_expired"`. After `"token_expired"`, an npm client with the option
                `tokenRefresher` gets a new token, and connects again.

        Raises:
            ValueError: the reason is not one of these two.
            RuntimeError: `connect` has already returned, and the client has been accepted.
        """
        if self._accepted:
            raise RuntimeError(
                f"{type(self).__name__}.reject_connection: call this in `connect`. To reject a subscription, call "
                "`self.reject()` in the channel. To close connections, call `reliable_cable.disconnect()`."
            )
        if reason not in REJECTION_REASONS:
            allowed = " or ".join(repr(str(each)) for each in REJECTION_REASONS)
            raise ValueError(
                f"{type(self).__name__}.reject_connection: the reason is {reason!r}; it must be {allowed}."
            )
        self._rejection = DisconnectReason(reason)

    # -- ASGI ---------------------------------------------------------------------------------------------------------

    @classmethod
    def as_asgi(cls, **initkwargs: Any) -> Any:
        """Return an ASGI application that serves WebSockets with this consumer.

        Args:
            allowed_origins: overrides the attribute `allowed_origins` of the class.

        Raises:
            ImproperlyConfigured: `allowed_origins` is not valid, or `reliable_cable` is not in `INSTALLED_APPS`.
        """
        if apps.apps_ready and not apps.is_installed("reliable_cable"):
            raise ImproperlyConfigured(
                "'reliable_cable' is not in INSTALLED_APPS. Add it, because channels would not be found otherwise."
            )
        origins.check_allowed_origins(cls.__name__, initkwargs.get("allowed_origins", cls.allowed_origins))
        return super().as_asgi(**initkwargs)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve a connection until it ends."""
        self.scope = scope
        self._namespace = enter_namespace(scope)
        admission = admit(self)
        self._rejection = admission.refusal
        if (call := scope.get("extensions", {}).get(RPC_EXTENSION)) is not None:
            self._accepted = not call.connects
            await call.run(self, admission, Hooks(self._decide, self._leave))
            return
        # The client counts as authenticated now, because the authentication middleware has just run.
        hub = get_hub()
        self._authenticated = hub.engine.session_clock.moment()
        self.base_send = send
        message = await receive()
        if message["type"] != "websocket.connect":
            return
        tenants = get_settings().namespace is not None
        if not origins.is_allowed(scope, self.allowed_origins, tenants=tenants):
            if "method" not in scope:  # `http.events` logs refusals of server-sent events
                origins.log_refusal(scope)
            await _refuse_for_now(send, constants.WRONG_ORIGIN)
            return
        if not await hub.connect_limit.allows(scope, self._namespace):
            await _refuse_for_now(send, DisconnectReason.RATE_LIMITED)
            return
        layer_task = await self._join_channel_layer()
        commands: Commands | None = None
        code = 1006
        try:
            commands = await self._accept(hub, send, admission)
            if commands is None:
                return
            # An idle connection must not keep what only its handshake needs in memory.
            del admission
            connection = self._session = commands.connection
            # The session id is set in the context, so that `to_others` in a handler excludes this client.
            connection.context.run(set_socket_id, connection.sid)
            if self._connected is not None:
                self._connected.set_result(copy_context())
            reading = Reading(connection)
            while True:
                # An idle connection must not keep its last message in memory.
                del message
                message = await receive()
                if message["type"] == "websocket.receive":
                    connection.receive(message.get("text"))
                    if reading.count(message):
                        message.clear()
                        await reading.pause()
                elif message["type"] == "websocket.disconnect":
                    code = message.get("code") or code
                    return
        finally:
            if commands is not None:
                # A server cancels this task when it stops. The session is saved nevertheless, because of the shield.
                await asyncio.shield(commands.connection.hub.tasks.spawn(self._end(commands, code)))
                self._session = None
            if layer_task is not None:
                layer_task.cancel()

    async def _accept(self, hub: Hub, send: Send, admission: Admission) -> Commands | None:
        subprotocol = constants.negotiate(self.scope.get("subprotocols") or ())
        transport = transport_for(self.scope, send)
        if transport.drainable:
            install_drain(transport.grace)  # if the server is already stopping, the hub begins to drain here
        if subprotocol is None or refuses_connections(hub):
            if subprotocol is None:
                handshake_log.warning(
                    "A client was refused, because it offers none of the subprotocols %s. The packages @anycable/web "
                    "and @rails/actioncable offer them.",
                    ", ".join(constants.Subprotocol),
                )
            await _refuse_for_now(send)
            return None
        if await self._decide() == constants.TRY_AGAIN:
            await _refuse_for_now(send)
            return None
        await hub.pacer.wait()
        if transport.lost:
            logger.debug("A client left before it was accepted.")
            return None
        if refuses_connections(hub):
            await _refuse_for_now(send)
            return None
        await send({"type": "websocket.accept", "subprotocol": str(subprotocol)})
        if self._rejection is not None:
            await send({"type": "websocket.send", "text": messages.disconnect(self._rejection, reconnect=False)})
            await send({"type": "websocket.close", "code": constants.CLOSE_NORMAL})
            return None
        self._accepted = True
        query = parse_qs(self.scope["query_string"].decode("latin1")) if self.scope.get("query_string") else {}
        connection = Connection(
            hub,
            self,
            subprotocol=subprotocol,
            identity=in_namespace(identity_of(self, self.identified_by), self.namespace),
            authenticated_at=self._authenticated,
            ping_interval=requested_ping_interval(query, hub.settings.ping_interval),
            transport=transport,
            # If `connect` has set another user, the login of the authentication middleware does not matter.
            login=admission.login if admission.login is not None and admission.login.is_of(self.user) else None,
            expires_at=admission.expires_at,
        )
        commands = Commands(connection)
        try:
            await open_connection(commands, requested_session(self.scope.get("headers", ()), query))
        except BaseException:
            await asyncio.shield(hub.tasks.spawn(self._end(commands, 1006)))
            raise
        return commands

    async def _decide(self) -> str | None:
        """Run `connect`. Return the reason for a refusal, or None. After `TRY_AGAIN`, the client reconnects."""
        handshake_log.report()
        try:
            if self._rejection is None and (calls := overridden(CableConsumer, self.connect)):
                async with asyncio.timeout(CONNECT_TIMEOUT) as timeout:
                    if refuses(await run_calls(nullcontext, calls)):
                        self._rejection = self._rejection or DisconnectReason.UNAUTHORIZED
        except REFUSALS as error:
            handshake_log.refusal("%s.connect refused its client: %r", type(self).__name__, error)
            self.reject_connection()
        except Exception as error:
            if timeout.expired():
                handshake_log.warning(
                    "%s.connect took more than %g s. Its client was refused.", type(self).__name__, CONNECT_TIMEOUT
                )
            elif is_outage(error):
                handshake_log.warning("A connection was not accepted because a database cannot be reached: %s", error)
            else:
                raise
            return constants.TRY_AGAIN
        return self._rejection

    async def _end(self, commands: Commands, code: int) -> None:
        await end_connection(commands, page_closed=code == constants.CLOSE_GOING_AWAY)
        await self._leave(code)

    async def _leave(self, code: int) -> None:
        await invoke_isolated(self, partial(self.disconnect, code), base=CableConsumer)

    # -- channel layer ------------------------------------------------------------------------------------------------

    async def _join_channel_layer(self) -> asyncio.Task[None] | None:
        if self.channel_layer_alias is None:
            return None
        self.channel_layer = get_channel_layer(self.channel_layer_alias)
        if self.channel_layer is None:
            raise ValueError(
                f"{type(self).__name__}.channel_layer_alias: there is no channel layer {self.channel_layer_alias!r}."
            )
        self._connected = asyncio.get_running_loop().create_future()
        self.channel_name = await self.channel_layer.new_channel()
        task = asyncio.get_running_loop().create_task(self._receive_from_layer())
        # Let the task begin, so that the channel layer cleans up if the task is cancelled.
        await asyncio.sleep(0)
        return task

    async def _receive_from_layer(self) -> None:
        assert self._connected is not None  # noqa: S101 - for the type checker
        receive = partial(self.channel_layer.receive, self.channel_name)
        while True:
            message = await retry(receive, "The channel layer cannot be read", delay=BACKGROUND_RETRY_DELAY)
            context = await self._connected
            try:
                await run_in_context(context, invoke_isolated(self, partial(self._handle_layer_message, message)))
            except StopConsumer:
                return
            except Exception:
                log = logger if self.session is None else self.session.log
                log.exception("A message from the channel layer could not be handled.")

    async def _handle_layer_message(self, message: dict[str, Any]) -> None:
        handler = getattr(self, get_handler_name(message), None)
        if handler is None:
            raise ValueError(f"No handler for message type {message['type']}")
        await handler(message)


async def _refuse_for_now(send: Send, reason: str = constants.TRY_AGAIN) -> None:
    """Refuse a handshake without a `disconnect` frame, so that the client reconnects."""
    await send({"type": "websocket.close", "code": constants.CLOSE_NORMAL, "reason": reason})


def _check_attributes(cls: type[CableConsumer]) -> None:
    """Raise `TypeError` if a class overrides `namespace` or `session`, or its `identified_by` has an unusable name."""
    names: Any = cls.identified_by
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise TypeError(
            f"{cls.__qualname__}.identified_by is {names!r}; it must be a tuple of names of attributes, such as "
            "('user',) or ('user', 'tenant')."
        )
    taken = [name for name in names if name != "user" and (name == "scope" or hasattr(CableConsumer, name))]
    taken += [name for name in ("namespace", "session") if getattr(cls, name) is not getattr(CableConsumer, name)]
    if taken:
        raise TypeError(f"{cls.__qualname__} uses {taken[0]!r}, which is an attribute of CableConsumer. Rename it.")
