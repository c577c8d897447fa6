"""The former path of the interface of session stores, for settings and engines that name it."""

from reliable_cable.stores.sessions.base import (
    CLOCK_MARGIN,
    MAX_SID_LENGTH,
    SessionRecord,
    SessionStore,
    is_revoked,
    is_session_id,
)

__all__ = ["CLOCK_MARGIN", "MAX_SID_LENGTH", "SessionRecord", "SessionStore", "is_revoked", "is_session_id"]
