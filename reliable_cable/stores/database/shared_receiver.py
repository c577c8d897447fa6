"""Shares one connection for notifications between the listeners of an event loop."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Final

from reliable_cable.concurrency.per_loop import PerLoop
from reliable_cable.concurrency.tasks import cancel
from reliable_cable.conf import CableSettings

from .notify import NotificationReceiver

#: The topic of presence: the first character of its payloads. The payloads of streams begin with a hexadecimal digit,
#: and have no topic.
PRESENCE: Final = "p"
_TOPICS: Final = (PRESENCE,)


class SharedReceiver:
    """Receives notifications on the running event loop. Receivers with the same settings object share a connection.

    Args:
        settings: the settings; `notify` and `database` are used.
        topic: the first character of the payloads to receive; `""` for the payloads without a topic.
        received: a function that is called with each payload.
        changed: a function that is called when `working` has changed. Notifications may have been missed.
        probe: a function that sends a notification with a payload to all processes, without blocking.
    """

    def __init__(
        self,
        settings: CableSettings,
        topic: str,
        received: Callable[[str], None],
        changed: Callable[[], None],
        probe: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.topic = topic
        self.received = received
        self.changed = changed
        self.probe = probe
        self._shared: _Shared | None = None

    @property
    def working(self) -> bool:
        """Whether notifications arrive."""
        return self._shared is not None and self._shared.working

    async def run(self) -> None:
        """Receive notifications until cancelled."""
        # Each value refers to its settings object. So while the id is a key, no other object can get this id.
        of_loop = _shared.get(dict)
        key = id(self.settings)
        self._shared = shared = of_loop.get(key) or of_loop.setdefault(key, _Shared(self.settings))
        try:
            await shared.serve(self)
        finally:
            self._shared = None
            if not shared.receivers and of_loop.get(key) is shared:
                del of_loop[key]
                await shared.close()


class _Shared:
    """The connection of an event loop, and the receivers that share it.

    Args:
        settings: the settings of all receivers.
    """

    def __init__(self, settings: CableSettings) -> None:
        self.receivers: list[SharedReceiver] = []
        self._receiver = NotificationReceiver(settings, self._received, self._changed, self._probe)
        self._settings = settings
        self._task: asyncio.Task[None] | None = None

    @property
    def working(self) -> bool:
        return self._receiver.working

    async def serve(self, receiver: SharedReceiver) -> None:
        """Pass notifications to a receiver until cancelled."""
        self.receivers.append(receiver)
        try:
            if self._task is None:
                # The task may outlive the receiver that starts it, so it does not inherit its context variables.
                self._task = asyncio.get_running_loop().create_task(self._receiver.run(), context=Context())
            if self.working:
                receiver.changed()
            await asyncio.wait([self._task])
            self._task.result()
        finally:
            self.receivers.remove(receiver)

    async def close(self) -> None:
        """Close the connection."""
        if self._task is not None:
            await cancel(self._task)

    def _received(self, payload: str) -> None:
        topic = payload[0] if payload.startswith(_TOPICS) else ""
        for receiver in self.receivers:
            if receiver.topic == topic:
                receiver.received(payload)

    def _changed(self) -> None:
        for receiver in list(self.receivers):
            receiver.changed()

    def _probe(self, payload: str) -> None:
        if self.receivers:
            self.receivers[0].probe(payload)


#: The connections of each event loop, by the ids of their settings.
_shared: PerLoop[dict[int, _Shared]] = PerLoop()
