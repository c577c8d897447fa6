"""`CableConsumer`: the only place that handles ASGI WebSocket messages."""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ClassVar
from urllib.parse import parse_qs

from channels.consumer import AsyncConsumer, get_handler_name
from channels.exceptions import StopConsumer
from channels.layers import get_channel_layer

from .concurrency.outages import is_outage
from .concurrency.retrying import BACKGROUND_RETRY_DELAY, retry
from .conf import CableSettings, get_settings
from .connection.commands import Commands
from .connection.connection import Connection
from .connection.handlers import invoke
from .connection.lifecycle import end_connection, open_connection
from .hub.hub import Hub
from .identity import identifier_names, identity_of
from .logins import Login, find_login
from .protocol import constants, messages
from .protocol.constants import DisconnectReason
from .servers import transport_for
from .servers.base import Transport
from .servers.drain import Drain
from .stores.engine import Engine, get_engine

logger = logging.getLogger("reliable_cable")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = weakref.WeakKeyDictionary()
_drains: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Drain] = weakref.WeakKeyDictionary()


def get_hub() -> Hub:
    """Return the hub of the running event loop. It is made anew after a change of settings."""
    loop = asyncio.get_running_loop()
    engine: Engine = get_engine()
    settings: CableSettings = get_settings()
    hub = _hubs.get(loop)
    if hub is None or hub.engine is not engine:
        for other in [other for other in _hubs if other.is_closed()]:
            del _hubs[other]
        hub = _hubs[loop] = Hub(engine, settings)
    return hub


class CableConsumer(AsyncConsumer):  # type: ignore[misc]  # Channels is untyped
    """A Channels consumer that speaks the extended Action Cable protocol. Subclass it to authenticate connections.

    `connect` may set attributes (`self.user = …`), which channels read as `self.connection.user`, or refuse the
    connection with `self.reject_connection()`.

    A subclass that sets `channel_layer_alias` receives messages of that channel layer, as any Channels consumer does.
    It has `self.channel_layer` and `self.channel_name` from `connect` on, and an `async def` method for each message
    type.
    """

    #: The attributes that identify the owner of the connection. A session is restored only if their values are equal.
    identified_by: ClassVar[tuple[str, ...]] = ("user",)
    #: The channel layer to receive messages from. None: no channel layer.
    channel_layer_alias: str | None = None

    scope: dict[str, Any]
    user: Any = None
    #: The connection, after the client was welcomed.
    session: Connection | None = None

    #: When the client was authenticated, by the monotonic clock of `Engine.session_clock`.
    _authenticated = 0.0
    _rejected = False
    #: Set when the client was welcomed. Messages of the channel layer are handled afterwards.
    _connected: asyncio.Event | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        identifier_names.update(cls.identified_by)

    # -- for subclasses -----------------------------------------------------------------------------------------------

    def connect(self) -> Any:
        """Authenticate a client (`def` or `async def`): set the attributes that identify it, or refuse it."""

    def disconnect(self, code: int) -> Any:
        """Clean up after the connection has ended and its channels were unsubscribed (`def` or `async def`).

        Args:
            code: the WebSocket close code.
        """

    def reject_connection(self) -> None:
        """Refuse the connection. The client is sent the reason `unauthorized`, and does not reconnect."""
        self._rejected = True

    # -- ASGI ---------------------------------------------------------------------------------------------------------

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection."""
        # The authentication middleware has just run.
        self._authenticated = get_hub().engine.session_clock.moment()
        self.scope = scope
        self.base_send = send
        self.user = scope.get("user")
        login = find_login(scope)
        message = await receive()
        if message["type"] != "websocket.connect":
            return
        layer_task = await self._join_channel_layer()
        commands: Commands | None = None
        code = 1006
        try:
            commands = await self._accept(send, login)
            if commands is None:
                return
            connection = self.session = commands.connection
            if self._connected is not None:
                self._connected.set()
            while True:
                # Keep no message in memory while the connection is idle.
                del message
                message = await receive()
                if message["type"] == "websocket.receive":
                    connection.receive(message.get("text"))
                elif message["type"] == "websocket.disconnect":
                    code = message.get("code") or code
                    return
        finally:
            if commands is not None:
                # A server that stops cancels this task. What a restore needs is kept all the same.
                await asyncio.shield(commands.connection.hub.tasks.spawn(self._end(commands, code)))
                self.session = None
            if layer_task is not None:
                layer_task.cancel()

    async def _accept(self, send: Send, login: Login | None) -> Commands | None:
        subprotocol = constants.negotiate(self.scope.get("subprotocols") or ())
        transport = transport_for(self.scope, send)
        hub = get_hub()
        if subprotocol is None or hub.draining:
            await send({"type": "websocket.close", "code": constants.CLOSE_NORMAL})
            return None
        if transport.drainable:
            _install_drain(transport)
        try:
            await invoke(self.connect, CableConsumer)
        except Exception as error:
            if not is_outage(error):
                raise
            # Without a disconnect message, the client reconnects.
            logger.warning("A connection was not accepted because a database cannot be reached: %s", error)
            await send({"type": "websocket.close", "code": constants.CLOSE_NORMAL})
            return None
        await hub.pacer.wait()
        if transport.lost:
            logger.debug("A client left before it was accepted.")
            return None
        if hub.draining:
            await send({"type": "websocket.close", "code": constants.CLOSE_NORMAL})
            return None
        await send({"type": "websocket.accept", "subprotocol": str(subprotocol)})
        if self._rejected:
            text = messages.disconnect(DisconnectReason.UNAUTHORIZED, reconnect=False)
            await send({"type": "websocket.send", "text": text})
            await send({"type": "websocket.close", "code": constants.CLOSE_NORMAL})
            return None
        query_string = self.scope.get("query_string")
        query = parse_qs(query_string.decode("latin1")) if query_string else {}
        connection = Connection(
            hub,
            self,
            subprotocol=subprotocol,
            identity=identity_of(self, self.identified_by),
            authenticated_at=self._authenticated,
            ping_interval=_ping_interval(query, hub.settings),
            transport=transport,
            # Not if `connect` has authenticated another user by itself.
            login=login if login is not None and login.is_of(self.user) else None,
        )
        commands = Commands(connection)
        try:
            await open_connection(commands, self._session_to_restore(query))
        except BaseException:
            await asyncio.shield(hub.tasks.spawn(self._end(commands, 1006)))
            raise
        return commands

    async def _end(self, commands: Commands, code: int) -> None:
        await end_connection(commands)
        await invoke(partial(self.disconnect, code), CableConsumer)

    def _session_to_restore(self, query: dict[str, list[str]]) -> str | None:
        for name, value in self.scope.get("headers", ()):
            if name.lower() == constants.SESSION_HEADER:
                return str(value.decode("latin1"))
        return query.get(constants.SESSION_PARAMETER, [None])[0]

    # -- channel layer ------------------------------------------------------------------------------------------------

    async def _join_channel_layer(self) -> asyncio.Task[None] | None:
        if self.channel_layer_alias is None:
            return None
        self.channel_layer = get_channel_layer(self.channel_layer_alias)
        if self.channel_layer is None:
            raise ValueError(
                f"{type(self).__name__}.channel_layer_alias: there is no {self.channel_layer_alias!r} layer."
            )
        self._connected = asyncio.Event()
        self.channel_name = await self.channel_layer.new_channel()
        task = asyncio.get_running_loop().create_task(self._receive_from_layer())
        # Layers clean up after a receiver that is cancelled: it must have begun.
        await asyncio.sleep(0)
        return task

    async def _receive_from_layer(self) -> None:
        assert self._connected is not None  # noqa: S101 - for the type checker; made before this began
        receive = partial(self.channel_layer.receive, self.channel_name)
        while True:
            message = await retry(receive, "The channel layer cannot be read", delay=BACKGROUND_RETRY_DELAY)
            await self._connected.wait()
            try:
                handler = getattr(self, get_handler_name(message), None)
                if handler is None:
                    raise ValueError(f"No handler for message type {message['type']}")
                await handler(message)
            except StopConsumer:
                return
            except Exception:
                logger.exception("A channel layer message failed.")


def _install_drain(transport: Transport) -> None:
    loop = asyncio.get_running_loop()
    if loop not in _drains:
        drain = _drains[loop] = Drain(get_hub, loop, grace=transport.grace)
        if not drain.install():
            logger.debug("Connections will not be drained before shutdown: this is not the main thread.")


def _ping_interval(query: dict[str, list[str]], settings: CableSettings) -> float:
    try:
        asked = float(query["pi"][0])
    except (KeyError, ValueError):
        asked = math.nan
    if math.isnan(asked):
        return settings.ping_interval
    return min(max(asked, constants.PING_INTERVAL_MIN), constants.PING_INTERVAL_MAX)
