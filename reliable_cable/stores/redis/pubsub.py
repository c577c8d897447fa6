"""The pub/sub connection to Redis. Each event loop has one connection, which subscribes to each channel once."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from reliable_cable.exceptions import reason
from reliable_cable.logs import logger

from .client import CONNECTION_ERRORS, RedisClient
from .exchange import cancellable
from .keys import former_channel

#: A function that is called with each message, and with None if messages may have been missed.
Deliver = Callable[[bytes | None], None]

#: How long, in seconds, `subscribe` waits for the confirmation of Redis.
SUBSCRIBE_TIMEOUT: Final = 2.0
#: The time, in seconds, between two pings to Redis.
PING_INTERVAL: Final = 2.0
#: How long, in seconds, Redis may be silent before the connection is closed.
SILENCE_TIMEOUT: Final = 7.0
#: How long, in seconds, a fence waits for its reply. After that, the connection is closed, and messages in transit are
#: lost.
FENCE_TIMEOUT: Final = 5.0
#: The minimum delay, in seconds, before another attempt to connect.
MIN_RETRY_DELAY: Final = 0.05
#: The maximum delay, in seconds, before another attempt to connect.
MAX_RETRY_DELAY: Final = 1.0
#: The maximum number of channels in a command. The former names of the channels are not counted.
CHANNELS_PER_COMMAND: Final = 500
#: The last character of a copy. Scripts publish a copy of a message under the former name of its channel, for processes
#: of the previous release (see lua/prelude.lua).
COPY_MARK: Final = b" "


class _Channel:
    """The callbacks of a channel, and the confirmation of its subscription."""

    __slots__ = ("callbacks", "confirmed")

    def __init__(self) -> None:
        self.callbacks: dict[Deliver, None] = {}
        self.confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Added(NamedTuple):
    """Subscriptions that `PubSub.add` has recorded.

    Args:
        new: the names of the channels that had no subscription before.
        states: the objects of all channels in the call of `add`.
    """

    new: list[str]
    states: list[_Channel]


class PubSub:
    """Subscribes to channels, and reconnects whenever the connection is lost.

    The connection is open while there are subscriptions. `pubsub_of` returns the object of the running event loop. All
    its methods must be called on that loop.

    It also subscribes to the former name of each channel, because processes of the previous release publish under that
    name. The next release will not need this.
    """

    _subscribe_command = "SUBSCRIBE"
    _unsubscribe_command = "UNSUBSCRIBE"

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._channels: dict[str, _Channel] = {}
        #: The current names of the channels, by their former names.
        self._names: dict[str, str] = {}
        self._connection: Any = None
        #: The subscriptions that Redis has not confirmed yet, by channel, in the order of the commands.
        self._unconfirmed: dict[str, deque[_Channel]] = {}
        #: The pending fences, by the payload of their PING.
        self._fences: dict[bytes, asyncio.Future[None]] = {}
        self._fence_count = 0
        self._task: asyncio.Task[None] | None = None
        self._last_reply_at = 0.0
        self._failing = False

    @property
    def connected(self) -> bool:
        """Whether the connection is open. A lost connection counts as open until the loss has been noticed."""
        return self._connection is not None

    async def subscribe(self, delivers: Mapping[str, Deliver]) -> None:
        """Subscribe to channels. Each channel's function is then called with each message on the channel.

        If Redis cannot be reached, this method returns nevertheless, and the functions are called with None as soon as
        Redis has confirmed the subscriptions. They are also called with None after each reconnect.

        Args:
            delivers: the functions, by channel.
        """
        await self.confirm(self.add(delivers))

    def add(self, delivers: Mapping[str, Deliver]) -> Added:
        """Record subscriptions. Return the argument for `confirm`, which sends them to Redis."""
        new = [channel for channel in delivers if channel not in self._channels]
        for channel in new:
            self._channels[channel] = _Channel()
            self._names |= dict.fromkeys(self._other_names(channel), channel)
        states = [self._channels[channel] for channel in delivers]
        for state, deliver in zip(states, delivers.values(), strict=True):
            state.callbacks[deliver] = None
        if new and self._task is None:
            self._task = asyncio.create_task(self._keep_connected(), name="cable-pubsub")
        return Added(new, states)

    async def confirm(self, added: Added) -> None:
        """Subscribe to the new channels, and wait until Redis has confirmed all channels that were passed to `add`.

        If this takes longer than `SUBSCRIBE_TIMEOUT`, return nevertheless (see `subscribe`).
        """
        new, states = added
        await self._send(self._subscribe_command, new)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SUBSCRIBE_TIMEOUT):
                for state in states:
                    await asyncio.shield(state.confirmed)
        for state in states:
            if not state.confirmed.done():
                # When Redis confirms the subscription later, the callbacks are called with None.
                state.confirmed.set_result(None)

    async def unsubscribe(self, channel: str, deliver: Deliver) -> None:
        """Stop calling `deliver` for a channel."""
        state = self._channels.get(channel)
        if state is None:
            return
        state.callbacks.pop(deliver, None)
        if state.callbacks:
            return
        del self._channels[channel]
        for name in self._other_names(channel):
            del self._names[name]
        if not state.confirmed.done():
            state.confirmed.set_result(None)
        if self._channels:
            await self._send(self._unsubscribe_command, [channel])
        elif self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait([task])

    async def fence(self) -> None:
        """Wait until each message that Redis published before this call has been delivered or is lost.

        Messages are lost if the connection breaks. In that case, the functions of all channels are called with None
        after the reconnect.
        """
        connection = self._connection
        if connection is None:
            return
        self._fence_count += 1
        payload = f"fence {self._fence_count}".encode()
        passed = self._fences[payload] = asyncio.get_running_loop().create_future()
        try:
            # Redis sends the reply after all messages that it has published before the PING.
            await cancellable(connection.send_command("PING", payload, check_health=False))
            async with asyncio.timeout(FENCE_TIMEOUT):
                await passed
        except TimeoutError:
            await connection.disconnect(nowait=True)
        except CONNECTION_ERRORS:
            pass  # `_serve` fails with the same error, and `_keep_connected` reconnects
        finally:
            self._fences.pop(payload, None)

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _send(self, command: str, channels: Sequence[str]) -> None:
        for start in range(0, len(channels), CHANNELS_PER_COMMAND):
            await self._send_some(command, channels[start : start + CHANNELS_PER_COMMAND])

    async def _send_some(self, command: str, channels: Sequence[str]) -> None:
        connection = self._connection
        if connection is None or not connection.is_connected:
            return  # `_serve` subscribes to all channels after the reconnect
        if command == self._subscribe_command:
            channels = [channel for channel in channels if channel in self._channels]
            for channel in channels:
                self._unconfirmed.setdefault(channel, deque()).append(self._channels[channel])
        # The former name comes first, so that Redis has subscribed to both names when it confirms the new name. Both
        # names are in the same command, because scripts compare their numbers of subscribers (see lua/prelude.lua).
        names = [name for channel in channels for name in (*self._other_names(channel), channel)]
        try:
            if names:  # the list is empty if `unsubscribe` was called in the meantime
                await cancellable(connection.send_command(command, *names, check_health=False))
        except CONNECTION_ERRORS:
            pass  # `_serve` fails with the same error, and `_keep_connected` reconnects

    async def _keep_connected(self) -> None:
        delay = MIN_RETRY_DELAY
        while True:
            try:
                await self._serve()
            except Exception as error:
                if not self._failing:
                    expected = isinstance(error, (*CONNECTION_ERRORS, TimeoutError))
                    logger.warning(
                        "The pub/sub connection to Redis was lost; reconnecting: %s.",
                        reason(error),
                        exc_info=not expected,
                    )
                    delay = MIN_RETRY_DELAY
                self._failing = True
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_RETRY_DELAY)

    async def _serve(self) -> None:
        connection = self._client.new_connection()
        watch: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(self._client.connect_timeout):
                await connection.connect()
            self._unconfirmed.clear()
            self._connection = connection
            self._last_reply_at = asyncio.get_running_loop().time()
            await self._send(self._subscribe_command, list(self._channels))
            watch = asyncio.create_task(self._watch(connection))
            while True:
                try:
                    reply: Any = await connection.read_response()
                except ResponseError as error:
                    self._handle_error(error)
                else:
                    self._handle(reply)
                self._last_reply_at = asyncio.get_running_loop().time()
        finally:
            if self._connection is connection:
                self._connection = None
                for passed in self._fences.values():
                    if not passed.done():
                        passed.set_result(None)
            if watch is not None:
                watch.cancel()
            await connection.disconnect(nowait=True)

    def _handle(self, reply: Any) -> None:
        # Before the first subscription, the reply to PING is not a list.
        kind = reply[0] if isinstance(reply, list) else b"pong"
        if kind in (b"message", b"smessage"):
            self._receive(reply[1].decode(), reply[2])
        elif kind in (b"subscribe", b"ssubscribe"):
            self._confirm(reply[1].decode())
        elif kind == b"pong":
            passed = self._fences.get(reply[1] if isinstance(reply, list) else reply)
            if passed is not None and not passed.done():
                passed.set_result(None)

    def _handle_error(self, error: ResponseError) -> None:
        """Handle an error reply. An error that is raised again breaks the connection."""
        raise error

    @staticmethod
    def _other_names(channel: str) -> tuple[str, ...]:
        """Return the other names of a channel, to which the connection also subscribes."""
        return (former_channel(channel),)

    def _receive(self, name: str, message: bytes) -> None:
        state = self._channels.get(name)
        if state is None and not message.endswith(COPY_MARK):
            state = self._channels.get(self._names.get(name, ""))
        if state is not None:
            self._deliver(state, message)

    def _confirm(self, channel: str) -> None:
        if self._failing:
            self._failing = False
            logger.info("The pub/sub connection to Redis works again.")
        unconfirmed = self._unconfirmed.get(channel)
        state = unconfirmed.popleft() if unconfirmed else None
        if not unconfirmed:
            self._unconfirmed.pop(channel, None)
        if state is None or self._channels.get(channel) is not state:
            return
        if state.confirmed.done():
            # The confirmation is late, or follows a reconnect. Messages that were published before it may be missing.
            self._deliver(state, None)
        else:
            state.confirmed.set_result(None)

    def _deliver(self, state: _Channel, message: bytes | None) -> None:
        for deliver in tuple(state.callbacks):
            self.call(deliver, message)

    @staticmethod
    def call(deliver: Deliver, message: bytes | None) -> None:
        """Call a function with a message, and log an error of the function."""
        try:
            deliver(message)
        except Exception:
            logger.exception("A message from Redis could not be delivered.")

    async def _watch(self, connection: Any) -> None:
        """Ping Redis. Close the connection if Redis does not respond, or if newer connections are to another server.

        A server that has crashed or is no longer the primary may not close its connections.
        """
        while True:
            await asyncio.sleep(PING_INTERVAL)
            if connection.identity != self._client.lineage.identity:
                logger.warning("The pub/sub connection is to a former Redis server; reconnecting.")
                await connection.disconnect(nowait=True)
                return
            if asyncio.get_running_loop().time() - self._last_reply_at > SILENCE_TIMEOUT:
                logger.warning(
                    "Redis sent nothing over the pub/sub connection for %g s; reconnecting.", SILENCE_TIMEOUT
                )
                await connection.disconnect(nowait=True)
                return
            with contextlib.suppress(*CONNECTION_ERRORS):
                await cancellable(connection.send_command("PING", check_health=False))
