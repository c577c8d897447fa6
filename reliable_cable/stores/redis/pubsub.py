"""One pub/sub connection an event loop: whatever the number of subscribers, a channel is subscribed to once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .client import BROKEN, RedisClient
from .exchange import cancellable

logger = logging.getLogger("reliable_cable")

#: Called with a message; with None if messages may have been missed.
Deliver = Callable[[bytes | None], None]

#: Seconds that `subscribe` waits for its confirmation.
SUBSCRIBE_TIMEOUT: Final = 2.0
#: Seconds between pings, and without any answer after which the connection is given up.
PING_INTERVAL: Final = 2.0
SILENCE_LIMIT: Final = 7.0
#: How long, in seconds, a fence waits for its answer. Then the connection is closed, and messages in transit are lost.
FENCE_TIMEOUT: Final = 5.0
#: Seconds between attempts to connect: at first, and at most.
RETRY_FIRST: Final = 0.05
RETRY_MOST: Final = 1.0
#: Channels that one command names.
BATCH: Final = 500


class _Channel:
    """Who hears a channel, and whether Redis has confirmed it."""

    __slots__ = ("confirmed", "ears")

    def __init__(self) -> None:
        self.ears: dict[Deliver, None] = {}
        self.confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class PubSub:
    """Subscribes to channels, comes back after every loss of the connection, and says that something may be missing.

    Made by `pubsub_of`; used from one event loop. It is connected while it has channels.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._channels: dict[str, _Channel] = {}
        self._connection: Any = None
        #: The confirmations that are to come on this connection, in their order, by channel.
        self._due: dict[str, deque[_Channel]] = {}
        #: The fences that wait for an answer on this connection, by the payload of their PING.
        self._fences: dict[bytes, asyncio.Future[None]] = {}
        self._fence_count = 0
        self._task: asyncio.Task[None] | None = None
        self._heard = 0.0
        self._failing = False

    @property
    def connected(self) -> bool:
        """Whether messages arrive, as far as is known."""
        return self._connection is not None

    async def subscribe(self, channel: str, deliver: Deliver) -> None:
        """Call `deliver` with what is published from now on.

        If Redis cannot be reached this returns all the same: `deliver` is called with None as soon as it can be, and
        whenever the connection has been lost and made again.
        """
        found = self._channels.get(channel)
        if found is None:
            found = self._channels[channel] = _Channel()
            found.ears[deliver] = None
            if self._task is None:
                self._task = asyncio.create_task(self._keep_connected(), name="cable-pubsub")
            await self._send("SUBSCRIBE", [channel])
        found.ears[deliver] = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SUBSCRIBE_TIMEOUT):
                await asyncio.shield(found.confirmed)
        if not found.confirmed.done():
            found.confirmed.set_result(None)  # whoever waits no longer is told when it comes

    async def unsubscribe(self, channel: str, deliver: Deliver) -> None:
        """Call `deliver` no more for this channel."""
        found = self._channels.get(channel)
        if found is None:
            return
        found.ears.pop(deliver, None)
        if found.ears:
            return
        del self._channels[channel]
        if not found.confirmed.done():
            found.confirmed.set_result(None)
        if self._channels:
            await self._send("UNSUBSCRIBE", [channel])
        elif self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait([task])

    async def fence(self) -> None:
        """Wait until everything that Redis published before this call has been delivered, or is lost.

        Messages are lost if the connection breaks. `deliver` is called with None once there is a new connection.
        """
        connection = self._connection
        if connection is None:
            return
        self._fence_count += 1
        payload = f"fence {self._fence_count}".encode()
        answered = self._fences[payload] = asyncio.get_running_loop().create_future()
        try:
            # Redis sends the answer after the messages that it published before.
            await cancellable(connection.send_command("PING", payload, check_health=False))
            async with asyncio.timeout(FENCE_TIMEOUT):
                await answered
        except TimeoutError:
            await connection.disconnect(nowait=True)
        except BROKEN:
            pass  # the reader notices, too
        finally:
            self._fences.pop(payload, None)

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _send(self, command: str, channels: list[str]) -> None:
        connection = self._connection
        if connection is None or not connection.is_connected:
            return  # all channels are subscribed to when there is a connection again
        if command == "SUBSCRIBE":
            channels = [channel for channel in channels if channel in self._channels]
            for channel in channels:
                self._due.setdefault(channel, deque()).append(self._channels[channel])
        try:
            await cancellable(connection.send_command(command, *channels, check_health=False))
        except BROKEN:
            pass  # the reader notices, too

    async def _keep_connected(self) -> None:
        delay = RETRY_FIRST
        while True:
            try:
                await self._serve()
            except Exception as error:
                if not self._failing:
                    expected = isinstance(error, (*BROKEN, TimeoutError))
                    logger.warning("The pub/sub connection to Redis was lost: %s.", error, exc_info=not expected)
                    delay = RETRY_FIRST
                self._failing = True
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MOST)

    async def _serve(self) -> None:
        connection = self._client.new_connection()
        watch: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(self._client.connect_timeout):
                await connection.connect()
            self._due.clear()
            self._connection = connection
            self._heard = asyncio.get_running_loop().time()
            channels = list(self._channels)
            for start in range(0, len(channels), BATCH):
                await self._send("SUBSCRIBE", channels[start : start + BATCH])
            watch = asyncio.create_task(self._watch(connection))
            while True:
                answer = await connection.read_response()
                self._heard = asyncio.get_running_loop().time()
                self._take(answer)
        finally:
            if self._connection is connection:
                self._connection = None
                for answered in self._fences.values():
                    if not answered.done():
                        answered.set_result(None)
            if watch is not None:
                watch.cancel()
            await connection.disconnect(nowait=True)

    def _take(self, answer: Any) -> None:
        # The answer to PING is no list before the first subscription.
        kind = answer[0] if isinstance(answer, list) else b"pong"
        if kind == b"message":
            found = self._channels.get(answer[1].decode())
            if found is not None:
                self._deliver(found, answer[2])
        elif kind == b"subscribe":
            self._confirmed(answer[1].decode())
        elif kind == b"pong":
            answered = self._fences.get(answer[1] if isinstance(answer, list) else answer)
            if answered is not None and not answered.done():
                answered.set_result(None)

    def _confirmed(self, channel: str) -> None:
        if self._failing:
            self._failing = False
            logger.info("The pub/sub connection to Redis is back.")
        due = self._due.get(channel)
        found = due.popleft() if due else None
        if not due:
            self._due.pop(channel, None)
        if found is None or self._channels.get(channel) is not found:
            return
        if found.confirmed.done():
            # Subscribed to before: what came between is missing.
            self._deliver(found, None)
        else:
            found.confirmed.set_result(None)

    @staticmethod
    def _deliver(found: _Channel, message: bytes | None) -> None:
        for deliver in tuple(found.ears):
            try:
                deliver(message)
            except Exception:
                logger.exception("A message from Redis could not be delivered.")

    async def _watch(self, connection: Any) -> None:
        """Ping; close the connection when it is silent, or when newer connections lead to another server.

        A server that has vanished, or is no longer the primary, does not close the connection itself.
        """
        while True:
            await asyncio.sleep(PING_INTERVAL)
            if connection.identity != self._client.lineage.identity:
                logger.warning("The pub/sub connection leads to a Redis that was replaced; reconnecting.")
                await connection.disconnect(nowait=True)
                return
            if asyncio.get_running_loop().time() - self._heard > SILENCE_LIMIT:
                logger.warning("The pub/sub connection to Redis is silent; it is made again.")
                await connection.disconnect(nowait=True)
                return
            with contextlib.suppress(*BROKEN):
                await cancellable(connection.send_command("PING", check_health=False))


def pubsub_of(client: RedisClient) -> PubSub:
    """Return the pub/sub connection of the running event loop."""
    loop = asyncio.get_running_loop()
    found: PubSub | None = client.pubsubs.get(loop)
    if found is None:
        for other in [other for other in client.pubsubs if other.is_closed()]:
            del client.pubsubs[other]
        found = client.pubsubs[loop] = PubSub(client)
    return found
