"""A channel layer that works across threads and event loops, as a shared layer does across processes."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any, ClassVar


class CrossLoopLayer:
    """The part of a channel layer that wake-ups use. All instances share their groups."""

    lock: ClassVar[threading.Lock] = threading.Lock()
    groups: ClassVar[dict[str, dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Any]]]]] = {}
    queues: ClassVar[dict[str, asyncio.Queue[Any]]] = {}
    sent: ClassVar[list[dict[str, Any]]] = []
    senders: ClassVar[set[tuple[int, int]]] = set()
    names: ClassVar[Any] = itertools.count()
    broken: ClassVar[bool] = False

    @classmethod
    def reset(cls) -> None:
        """Remove all groups, channels and messages, and end a simulated outage (`broken`)."""
        cls.groups.clear()
        cls.queues.clear()
        cls.sent.clear()
        cls.senders.clear()
        cls.broken = False

    async def new_channel(self, prefix: str = "specific.") -> str:
        """Return the name of a new channel of this event loop."""
        name = f"{prefix}{next(self.names)}"
        self.queues[name] = asyncio.Queue()
        return name

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group."""
        if self.broken:
            raise ConnectionError("the layer is down")
        with self.lock:
            self.groups.setdefault(group, {})[channel] = (asyncio.get_running_loop(), self.queues[channel])

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group."""
        with self.lock:
            self.groups.get(group, {}).pop(channel, None)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send a message to every channel of a group."""
        if self.broken:
            raise ConnectionError("the layer is down")
        self.sent.append(message)
        self.senders.add((threading.get_ident(), id(asyncio.get_running_loop())))
        with self.lock:
            members = list(self.groups.get(group, {}).values())
        for loop, queue in members:
            loop.call_soon_threadsafe(queue.put_nowait, message)

    async def receive(self, channel: str) -> Any:
        """Wait for the next message of a channel. Cancelling this removes the channel, as in channels-redis."""
        try:
            return await self.queues[channel].get()
        except asyncio.CancelledError:
            del self.queues[channel]
            raise
