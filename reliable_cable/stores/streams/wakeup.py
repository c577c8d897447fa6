"""Wake-ups between processes over a shared channel layer.

A wake-up is a hint to poll the database now. A lost wake-up does no harm, because the next regular poll finds the
messages anyway.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from channels.layers import InMemoryChannelLayer, get_channel_layer

from reliable_cable.logs import logger

GROUP = "reliable_cable"
MESSAGE_TYPE = "cable.wake"

NOT_WOKEN = "Other processes could not be woken over the channel layer. They find new messages when they poll."

#: The maximum number of streams in a wake-up.
MAX_STREAMS = 500
#: The maximum time, in seconds, that it may take to send a wake-up.
SEND_TIMEOUT = 5.0
#: The maximum time, in seconds, that it may take to leave the group of the channel layer.
DISCARD_TIMEOUT = 1.0
#: How long, in seconds, to wait before receiving wake-ups again after an error of the channel layer.
RETRY_INTERVAL = 5.0
#: How often, in seconds, the membership of the group is renewed. Channel layers let memberships expire.
RENEW_INTERVAL = 3600.0


def shared_layer() -> Any:
    """Return the default channel layer; None if there is no layer, or if it does not reach other processes."""
    layer = get_channel_layer()
    return None if layer is None or isinstance(layer, InMemoryChannelLayer) else layer


class _Sender:
    """Sends wake-ups from a thread with an event loop of its own.

    All wake-ups are sent on the same event loop, because channel layers open a connection for each event loop.
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._pending: set[str] = set()
        self._due = asyncio.Event()
        self._closing = False
        self._failing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="cable-wakeups", daemon=True)
        self._thread.start()

    def send(self, streams: Iterable[str]) -> None:
        self._loop.call_soon_threadsafe(self._add, streams)

    def _add(self, streams: Iterable[str]) -> None:
        self._pending.update(streams)
        self._due.set()

    def close(self) -> None:
        self._closing = True
        self._loop.call_soon_threadsafe(self._due.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        while not self._closing:
            await self._due.wait()
            self._due.clear()
            streams, self._pending = self._pending, set()
            await self._send(sorted(streams))

    async def _send(self, streams: list[str]) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                layer = shared_layer()
                for start in range(0, len(streams) if layer else 0, MAX_STREAMS):
                    names = streams[start : start + MAX_STREAMS]
                    await layer.group_send(GROUP, {"type": MESSAGE_TYPE, "origin": self._origin, "streams": names})
            self._failing = False
        except Exception:
            if not self._failing:
                logger.warning(NOT_WOKEN, exc_info=True)
            self._failing = True


class Waker:
    """Sends wake-ups to the other processes. A waker can also be used in a forked child."""

    def __init__(self) -> None:
        self._senders: dict[int, _Sender] = {}
        self._lock = threading.Lock()

    def wake(self, origin: str, streams: Iterable[str]) -> None:
        """Wake the other processes that poll these streams, if a shared channel layer is configured.

        This method does not block. Errors are only logged, because a lost wake-up does no harm.

        Args:
            origin: the name of this process's store, so that this process ignores its own wake-ups.
            streams: the names of the streams.
        """
        try:
            if shared_layer() is None:
                return
            pid = os.getpid()
            with self._lock:
                sender = self._senders.get(pid) or self._senders.setdefault(pid, _Sender(origin))
            sender.send(streams)
        except Exception:
            logger.warning(NOT_WOKEN, exc_info=True)

    def close(self) -> None:
        """Stop the thread that sends this process's wake-ups, if it is running."""
        sender = self._senders.pop(os.getpid(), None)
        if sender is not None:
            sender.close()


async def receive_wakeups(origin: str, woken: Callable[[list[str]], None], joined: Callable[[], None]) -> None:
    """Receive wake-ups until cancelled, and retry after errors. Return at once if there is no shared channel layer.

    Args:
        origin: the name of this process's store, whose wake-ups are ignored.
        woken: a function that is called with the names of the streams in each wake-up.
        joined: a function that is called whenever receiving begins, because earlier wake-ups may have been missed.
    """
    failing = False
    while True:
        try:
            layer = shared_layer()
            if layer is None:
                return
            await _receive(layer, origin, woken, joined)
        except Exception:
            if not failing:
                logger.warning(
                    "Wake-ups cannot be received over the channel layer. Streams are polled, and this is retried.",
                    exc_info=True,
                )
            failing = True
            await asyncio.sleep(RETRY_INTERVAL)


async def _receive(layer: Any, origin: str, woken: Callable[[list[str]], None], joined: Callable[[], None]) -> None:
    channel = await layer.new_channel()
    try:
        await layer.group_add(GROUP, channel)
        joined()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_renew(layer, channel))
            while True:
                message = await layer.receive(channel)
                if message.get("type") == MESSAGE_TYPE and message.get("origin") != origin:
                    woken(message["streams"])
    finally:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(DISCARD_TIMEOUT):
                await layer.group_discard(GROUP, channel)


async def _renew(layer: Any, channel: str) -> None:
    # A separate task renews the membership, because `layer.receive` must not be cancelled to do so. If it is cancelled,
    # the pub/sub layer of channels-redis drops the channel.
    while True:
        await asyncio.sleep(RENEW_INTERVAL)
        await layer.group_add(GROUP, channel)
