"""The session store in Redis. Redis expires the keys of records and of revocations."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence

from reliable_cable.conf import CableSettings
from reliable_cable.identity import Identity, condition_key, condition_keys
from reliable_cable.stores.redis.client import Call
from reliable_cable.stores.redis.keys import revocation_key, session_key
from reliable_cable.stores.redis.store import RedisStore, sync_twin

from .base import CLOCK_MARGIN, SessionRecord, SessionStore, is_revoked, is_session_id
from .record_text import MAX_WHOLE_SIZE, RecordText, WrittenTexts, encode


class RedisSessionStore(RedisStore, SessionStore):
    """Stores session records in the Redis server at `settings.redis_url`.

    Args:
        settings: the settings; `redis_url`, `redis_options`, `key_prefix` and `sessions_ttl` are used.
        clock: a clock for tests, which replaces Redis's clock for revocations. Records always expire by Redis's clock.
    """

    may_lose_data = True

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock)
        #: The TTL of records, in milliseconds.
        self._ttl = int(settings.sessions_ttl * 1000)
        self._written = WrittenTexts()

    async def asave(self, records: Mapping[str, SessionRecord]) -> None:
        """Store records. If one of them is not JSON, no record is stored."""
        texts = {sid: self._encode(sid, record) for sid, record in records.items()}
        if not self._ttl:
            return
        calls = {sid: self._write(sid, text) for sid, text in texts.items()}
        replies = await self.client.arun_all(calls.values())
        # The reply is 0 if Redis has another text or none, because data were lost or another process wrote the record.
        unchanged = [sid for sid, reply in zip(calls, replies, strict=True) if reply == 0]
        await self.client.arun_all([self._write_whole(sid, texts[sid]) for sid in unchanged])
        for sid, text in texts.items():
            if isinstance(text, RecordText):
                self._written.add(sid, text)

    save = sync_twin(asave)

    def _encode(self, sid: str, record: SessionRecord) -> str | RecordText:
        if self._written.get(sid) is None:
            text = encode(record)
            if len(text) <= MAX_WHOLE_SIZE:
                return text
        return RecordText.of(record)

    def _write(self, sid: str, text: str | RecordText) -> Call:
        """Return the call that writes the changes of a record, or the whole record if its old text is unknown."""
        old = self._written.get(sid)
        if old is None or isinstance(text, str):
            return self._write_whole(sid, text)
        change = text.change_from(old)
        position = (change.kept, change.inserted, change.resumed, change.ended)
        return Call("session_change", [self._key(sid)], [self._ttl, old.version, *position, change.end])

    def _write_whole(self, sid: str, text: str | RecordText) -> Call:
        return Call("SET", [self._key(sid)], [str(text), "PX", self._ttl])

    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return the record of a session."""
        return self.load_many([(sid, identity)])[0]

    async def aload_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        """Return the records of sessions. One round trip reads hundreds of records."""
        sids = [sid for sid, _ in wanted if is_session_id(sid)]
        # Revocations are read after the records, so that a revocation during the reads is found.
        revocations = self._revocations([identity for _, identity in wanted]) if sids else {}
        calls = [Call("GET", [self._key(sid)]) for sid in sids]
        if self.client.names.cluster:
            # The calls of one round trip run at the same time on several nodes.
            replies = await self.client.arun_all(calls)
            replies += await self.client.arun_all(revocations.values())
        else:
            replies = await self.client.arun_all([*calls, *revocations.values()])
        texts = dict(zip(sids, replies, strict=False))
        times = _times(dict(zip(revocations, replies[len(sids) :], strict=True)))
        return [_loaded(texts.get(sid), identity, times) for sid, identity in wanted]

    load_many = sync_twin(aload_many)

    async def atouch(self, sids: Collection[str]) -> set[str]:
        """Renew the TTL of records. Expired records are not renewed."""
        replies = await self.client.arun_all([Call("PEXPIRE", [self._key(sid)], [self._ttl]) for sid in sids])
        return {sid for sid, existed in zip(sids, replies, strict=True) if not existed}

    touch = sync_twin(atouch)

    async def adelete(self, sids: Collection[str]) -> None:
        """Delete records."""
        for sid in sids:
            self._written.forget(sid)
        await self.client.arun_all([Call("DEL", [self._key(sid)]) for sid in sids])

    delete = sync_twin(adelete)

    async def arevoke(self, condition: Identity) -> float:
        """Store the time of a revocation. Redis keeps it until all records that it may revoke have expired."""
        key = revocation_key(self.settings.key_prefix, condition_key(condition))
        ttl = self._ttl + int(CLOCK_MARGIN * 1000) if self._ttl else 0
        return float((await self.client.arun(Call("revoke", [key], [self.script_time(), ttl]), idempotent=True))[0])

    revoke = sync_twin(arevoke)

    async def arevoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return for each identity the time of the last revocation that matches it; 0 if none matches."""
        calls = self._revocations(identities)
        times = _times(dict(zip(calls, await self.client.arun_all(calls.values()), strict=True)))
        return [max(_matching(identity, times), default=0.0) for identity in identities]

    revoked = sync_twin(arevoked)

    def prune(self, *, limit: int = 1000) -> int:
        """Delete nothing and return 0, because Redis deletes expired keys."""
        return 0

    async def aprune(self, *, limit: int = 1000) -> int:
        """Async version of `prune`, which needs no thread."""
        return self.prune(limit=limit)

    def _key(self, sid: str) -> str:
        return session_key(self.settings.key_prefix, sid)

    def _revocations(self, identities: Sequence[Identity]) -> dict[str, Call]:
        keys = dict.fromkeys(key for identity in identities for key in condition_keys(identity))
        return {key: Call("GET", [revocation_key(self.settings.key_prefix, key)]) for key in keys}


def _times(replies: Mapping[str, bytes | None]) -> dict[str, float]:
    """Return the times of revocations, by the keys of their conditions."""
    return {key: float(reply) for key, reply in replies.items() if reply is not None}


def _matching(identity: Identity, times: Mapping[str, float]) -> list[float]:
    return [times[key] for key in condition_keys(identity) if key in times]


def _loaded(text: bytes | None, identity: Identity, times: Mapping[str, float]) -> SessionRecord | None:
    if text is None:
        return None
    owner, authenticated, data = json.loads(text)
    if owner != identity or is_revoked(authenticated, _matching(identity, times)):
        return None
    return SessionRecord(owner, authenticated, data, len(text))
