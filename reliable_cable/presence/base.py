"""The former path of the interface of presence stores, for settings and engines that name it."""

from reliable_cable.stores.presence.base import (
    OUTAGE_SHARE,
    UNHEARD_TIME,
    Member,
    PresenceEvent,
    PresenceInfo,
    PresenceListener,
    PresenceMissed,
    PresenceStore,
    Refreshed,
)

OUTAGE_PART = OUTAGE_SHARE

__all__ = [
    "OUTAGE_PART",
    "UNHEARD_TIME",
    "Member",
    "PresenceEvent",
    "PresenceInfo",
    "PresenceListener",
    "PresenceMissed",
    "PresenceStore",
    "Refreshed",
]
