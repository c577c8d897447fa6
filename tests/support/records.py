"""Reading session records from a store."""

from __future__ import annotations

from reliable_cable.identity import Identity
from reliable_cable.stores.sessions.base import SessionRecord, SessionStore


async def load_record(store: SessionStore, sid: str, identity: Identity) -> SessionRecord | None:
    """Return one record; None if the store does not have it. The hub loads several at a time."""
    (record,) = await store.aload_many([(sid, identity)])
    return record
