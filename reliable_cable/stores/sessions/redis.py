"""The session store in Redis. It has a key for each session and for each revoked condition, which Redis expires."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from reliable_cable.conf import CableSettings
from reliable_cable.identity import Identity, condition_key, condition_keys
from reliable_cable.stores.redis.client import Call
from reliable_cable.stores.redis.keys import revocation_key, session_key
from reliable_cable.stores.redis.store import RedisStore

from .base import CLOCK_MARGIN, SessionRecord, SessionStore, is_revoked, is_session_id


class RedisSessionStore(RedisStore, SessionStore):
    """Stores session records in the Redis of `settings.redis_url`.

    Args:
        settings: uses `redis_url`, `redis_options`, `key_prefix` and `sessions_ttl`.
        clock: replaces Redis's clock for revocations in tests. Records always expire by Redis's clock.
    """

    may_lose_data = True

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock)
        #: The TTL of a record in milliseconds.
        self._ttl = int(settings.sessions_ttl * 1000)

    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Store records. If one of them is not JSON, none is stored."""
        self.client.run_all(self._save(records))

    async def asave(self, records: Mapping[str, SessionRecord]) -> None:
        """Async twin of `save`."""
        await self.client.arun_all(self._save(records))

    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return the record of a session."""
        if not is_session_id(sid):
            return None
        return _loaded(self.client.run(*self._load(sid, identity), idempotent=True), identity)

    async def aload(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Async twin of `load`."""
        if not is_session_id(sid):
            return None
        return _loaded(await self.client.arun(*self._load(sid, identity), idempotent=True), identity)

    def load_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        """Return the records of sessions, in one round trip for some hundreds of them."""
        calls = self._load_many(wanted)
        replies = self.client.run_all(calls.values())
        return _loaded_many(wanted, dict(zip(calls, replies, strict=True)))

    async def aload_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        """Async twin of `load_many`."""
        calls = self._load_many(wanted)
        replies = await self.client.arun_all(calls.values())
        return _loaded_many(wanted, dict(zip(calls, replies, strict=True)))

    def touch(self, sids: Collection[str]) -> set[str]:
        """Renew the TTL of records. Expired records stay expired."""
        return _missing(sids, self.client.run_all(self._touch(sids)))

    async def atouch(self, sids: Collection[str]) -> set[str]:
        """Async twin of `touch`."""
        return _missing(sids, await self.client.arun_all(self._touch(sids)))

    def delete(self, sids: Collection[str]) -> None:
        """Delete records."""
        self.client.run_all(self._delete(sids))

    async def adelete(self, sids: Collection[str]) -> None:
        """Async twin of `delete`."""
        await self.client.arun_all(self._delete(sids))

    def revoke(self, condition: Identity) -> float:
        """Store the time of a revocation for as long as the records that it revokes can live."""
        return float(self.client.run(self._revoke(condition), idempotent=True)[0])

    async def arevoke(self, condition: Identity) -> float:
        """Async twin of `revoke`."""
        return float((await self.client.arun(self._revoke(condition), idempotent=True))[0])

    def revoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return for each identity the last time at which matching sessions were revoked, or 0."""
        calls = self._revocations(identities)
        replies = self.client.run_all(calls.values())
        return _latest(identities, dict(zip(calls, replies, strict=True)))

    async def arevoked(self, identities: Sequence[Identity]) -> list[float]:
        """Async twin of `revoked`."""
        calls = self._revocations(identities)
        replies = await self.client.arun_all(calls.values())
        return _latest(identities, dict(zip(calls, replies, strict=True)))

    def prune(self, *, limit: int = 1000) -> int:
        """Return 0, because Redis itself deletes expired keys."""
        return 0

    # -- calls --------------------------------------------------------------------------------------------------------

    def _key(self, sid: str) -> str:
        return session_key(self.settings.key_prefix, sid)

    def _save(self, records: Mapping[str, SessionRecord]) -> list[Call]:
        if self._ttl == 0:
            return []
        texts = {
            sid: json.dumps([dict(record.identity), record.authenticated, record.data])
            for sid, record in records.items()
        }
        return [Call("SET", [self._key(sid)], [text, "PX", self._ttl]) for sid, text in texts.items()]

    def _load(self, sid: str, identity: Identity) -> list[Call]:
        return [Call("GET", [self._key(sid)]), *self._revocations([identity]).values()]

    def _load_many(self, wanted: Sequence[tuple[str, Identity]]) -> dict[tuple[str, str], Call]:
        records = {("sid", sid): Call("GET", [self._key(sid)]) for sid, _ in wanted if is_session_id(sid)}
        # Revocations are read after the records, so that a revocation during the reads is found.
        revocations = self._revocations([identity for _, identity in wanted])
        return {**records, **{("revoked", key): call for key, call in revocations.items()}}

    def _touch(self, sids: Collection[str]) -> list[Call]:
        return [Call("PEXPIRE", [self._key(sid)], [self._ttl]) for sid in sids]

    def _delete(self, sids: Collection[str]) -> list[Call]:
        return [Call("DEL", [self._key(sid)]) for sid in sids]

    def _revoke(self, condition: Identity) -> Call:
        key = revocation_key(self.settings.key_prefix, condition_key(condition))
        ttl = self._ttl + int(CLOCK_MARGIN * 1000) if self._ttl else 0
        return Call("revoke", [key], [self.script_time(), ttl])

    def _revocations(self, identities: Sequence[Identity]) -> dict[str, Call]:
        keys = dict.fromkeys(key for identity in identities for key in condition_keys(identity))
        return {key: Call("GET", [revocation_key(self.settings.key_prefix, key)]) for key in keys}


def _loaded(replies: Sequence[Any], identity: Identity) -> SessionRecord | None:
    text, *times = replies
    if text is None:
        return None
    owner, authenticated, data = json.loads(text)
    if owner != identity or is_revoked(authenticated, [float(at) for at in times if at is not None]):
        return None
    return SessionRecord(owner, authenticated, data)


def _loaded_many(
    wanted: Sequence[tuple[str, Identity]], replies: Mapping[tuple[str, str], Any]
) -> list[SessionRecord | None]:
    records: list[SessionRecord | None] = []
    for sid, identity in wanted:
        times = [replies["revoked", key] for key in condition_keys(identity)]
        records.append(_loaded([replies.get(("sid", sid)), *times], identity))
    return records


def _missing(sids: Collection[str], replies: Sequence[int]) -> set[str]:
    return {sid for sid, existed in zip(sids, replies, strict=True) if not existed}


def _latest(identities: Sequence[Identity], replies: Mapping[str, Any]) -> list[float]:
    times = {key: float(reply) for key, reply in replies.items() if reply is not None}
    return [max((times.get(key, 0.0) for key in condition_keys(identity)), default=0.0) for identity in identities]
