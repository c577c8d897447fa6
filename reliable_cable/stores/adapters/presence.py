"""The presence store of projects whose clients are connected to anycable-go. It knows no members."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn, TypeVar

from reliable_cable.concurrency.threads import run_publish
from reliable_cable.exceptions import NotSupported
from reliable_cable.stores.presence.base import (
    Member,
    PresenceEvent,
    PresenceInfo,
    PresenceListener,
    PresenceMissed,
    PresenceStore,
    Refreshed,
)

T = TypeVar("T")


class AdapterPresenceStore(PresenceStore):
    """Refuses all calls that need the members of streams."""

    def join_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Refuse the call."""
        self._refuse()

    def leave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Refuse the call."""
        self._refuse()

    def refresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Refuse the call."""
        self._refuse()

    def expire(self) -> list[PresenceEvent]:
        """Remove nothing, because there are no members here."""
        return []

    def info(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Refuse the call."""
        self._refuse()

    def left_within(self, stream: str, seconds: float) -> list[str]:
        """Refuse the call."""
        self._refuse()

    def listen(self, deliver: Callable[[PresenceEvent | PresenceMissed], None]) -> PresenceListener:
        """Refuse the call."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotSupported(
            "The members of streams cannot be read or changed, because RELIABLE_CABLE['BROADCAST_ADAPTER'] is "
            f"{self.settings.broadcast_adapter!r}, so clients are connected to anycable-go. Version 1.5 of it has no "
            "presence; in 1.6, clients can request the members. Or remove the setting, and connect clients to servers "
            "of this package."
        )

    async def _run(self, call: Callable[[], T]) -> T:
        return await run_publish(call)
