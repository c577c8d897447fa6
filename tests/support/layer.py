"""A channel layer that reaches other threads and loops, as a shared one reaches other processes."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any, ClassVar


class CrossLoopLayer:
    """What the wake-ups use of a channel layer; every instance has the same groups."""

    lock: ClassVar[threading.Lock] = threading.Lock()
    groups: ClassVar[dict[str, dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Any]]]]] = {}
    queues: ClassVar[dict[str, asyncio.Queue[Any]]] = {}
    sent: ClassVar[list[dict[str, Any]]] = []
    senders: ClassVar[set[tuple[int, int]]] = set()
    names: ClassVar[Any] = itertools.count()
    broken: ClassVar[bool] = False

    @classmethod
    def reset(cls) -> None:
        """Forget everything."""
        cls.groups.clear()
        cls.queues.clear()
        cls.sent.clear()
        cls.senders.clear()
        cls.broken = False

    async def new_channel(self, prefix: str = "specific.") -> str:
        """Name a channel of this loop's."""
        name = f"{prefix}{next(self.names)}"
        self.queues[name] = asyncio.Queue()
        return name

    async def group_add(self, group: str, channel: str) -> None:
        """Let a channel receive what is sent to a group."""
        if self.broken:
            raise ConnectionError("the layer is down")
        with self.lock:
            self.groups.setdefault(group, {})[channel] = (asyncio.get_running_loop(), self.queues[channel])

    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out of a group."""
        with self.lock:
            self.groups.get(group, {}).pop(channel, None)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send to every channel of a group."""
        if self.broken:
            raise ConnectionError("the layer is down")
        self.sent.append(message)
        self.senders.add((threading.get_ident(), id(asyncio.get_running_loop())))
        with self.lock:
            members = list(self.groups.get(group, {}).values())
        for loop, queue in members:
            loop.call_soon_threadsafe(queue.put_nowait, message)

    async def receive(self, channel: str) -> Any:
        """Wait for a channel's next message; cancelled, it lets go of the channel, as channels-redis does."""
        try:
            return await self.queues[channel].get()
        except asyncio.CancelledError:
            del self.queues[channel]
            raise
