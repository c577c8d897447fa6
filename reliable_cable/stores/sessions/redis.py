"""Sessions in Redis: a key for each, and one for each condition that was revoked; Redis lets them expire."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from reliable_cable.conf import CableSettings
from reliable_cable.identity import Identity, condition_key, condition_keys
from reliable_cable.stores.redis.client import Call, client_for
from reliable_cable.stores.redis.keys import revocation_key, session_key

from .base import CLOCK_MARGIN, SessionRecord, SessionStore, is_revoked, is_session_id

T = TypeVar("T")

#: Commands that are sent at once.
BATCH: Final = 500


class RedisSessionStore(SessionStore):
    """Keeps sessions in the Redis of `settings.redis_url`.

    Args:
        settings: `redis_url`, `redis_options`, `key_prefix` and `sessions_ttl`.
        clock: replaces Redis's clock for revocations in tests. Records always expire by Redis's clock.
    """

    may_lose_data = True

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock or time.time)
        self._clock = clock
        self.client = client_for(settings)
        self._ttl = int(settings.sessions_ttl * 1000)

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self.client.aclose()

    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Store records; the first one that is not JSON raises, and none is stored."""
        for calls in _batches(self._save(records)):
            self.client.run(*calls, again=True)

    async def asave(self, records: Mapping[str, SessionRecord]) -> None:
        """Async twin of `save`."""
        for calls in _batches(self._save(records)):
            await self.client.arun(*calls, again=True)

    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return a record."""
        if not is_session_id(sid):
            return None
        return _loaded(self.client.run(*self._load(sid, identity), again=True), identity)

    async def aload(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Async twin of `load`."""
        if not is_session_id(sid):
            return None
        return _loaded(await self.client.arun(*self._load(sid, identity), again=True), identity)

    def load_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        """Return records, in one round trip for some hundreds of them."""
        sids, revocations = self._load_many(wanted)
        calls = [*sids.values(), *revocations.values()]
        answers = [answer for batch in _batches(calls) for answer in self.client.run(*batch, again=True)]
        return _loaded_many(wanted, dict(zip([*sids, *revocations], answers, strict=True)))

    async def aload_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        """Async twin of `load_many`."""
        sids, revocations = self._load_many(wanted)
        answers: list[Any] = []
        for batch in _batches([*sids.values(), *revocations.values()]):
            answers += await self.client.arun(*batch, again=True)
        return _loaded_many(wanted, dict(zip([*sids, *revocations], answers, strict=True)))

    def touch(self, sids: Collection[str]) -> set[str]:
        """Give records a new time; what has expired stays so."""
        found: list[int] = []
        for calls in _batches(self._touch(sids)):
            found += self.client.run(*calls, again=True)
        return {sid for sid, was_there in zip(sids, found, strict=True) if not was_there}

    async def atouch(self, sids: Collection[str]) -> set[str]:
        """Async twin of `touch`."""
        found: list[int] = []
        for calls in _batches(self._touch(sids)):
            found += await self.client.arun(*calls, again=True)
        return {sid for sid, was_there in zip(sids, found, strict=True) if not was_there}

    def delete(self, sids: Collection[str]) -> None:
        """Remove records."""
        for calls in _batches([Call("DEL", [self._key(sid)]) for sid in sids]):
            self.client.run(*calls, again=True)

    async def adelete(self, sids: Collection[str]) -> None:
        """Async twin of `delete`."""
        for calls in _batches([Call("DEL", [self._key(sid)]) for sid in sids]):
            await self.client.arun(*calls, again=True)

    def revoke(self, condition: Identity) -> float:
        """Store the present time for as long as the records that it voids can live."""
        return float(self.client.run(self._revoke(condition), again=True)[0])

    async def arevoke(self, condition: Identity) -> float:
        """Async twin of `revoke`."""
        return float((await self.client.arun(self._revoke(condition), again=True))[0])

    def revoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return for each identity the last time that sessions of its kind were revoked."""
        keys = self._revocations(identities)
        answers = [answer for calls in _batches(keys.values()) for answer in self.client.run(*calls, again=True)]
        return _latest(identities, dict(zip(keys, answers, strict=True)))

    async def arevoked(self, identities: Sequence[Identity]) -> list[float]:
        """Async twin of `revoked`."""
        keys = self._revocations(identities)
        answers: list[Any] = []
        for calls in _batches(keys.values()):
            answers += await self.client.arun(*calls, again=True)
        return _latest(identities, dict(zip(keys, answers, strict=True)))

    def time(self) -> float:
        """Return the present time by Redis's clock."""
        return self.client.time() if self._clock is None else self._clock()

    async def atime(self) -> float:
        """Async twin of `time`."""
        return await self.client.atime() if self._clock is None else self._clock()

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clock of Redis."""
        return {"Redis": self.time}

    def prune(self, *, limit: int = 1000) -> int:
        """Delete nothing: Redis does."""
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

    def _load_many(
        self, wanted: Sequence[tuple[str, Identity]]
    ) -> tuple[dict[tuple[str, str], Call], dict[tuple[str, str], Call]]:
        sids = {("sid", sid): Call("GET", [self._key(sid)]) for sid, _ in wanted if is_session_id(sid)}
        # After the records: what is revoked while they are read is found.
        revocations = self._revocations([identity for _, identity in wanted])
        return sids, {("revoked", key): call for key, call in revocations.items()}

    def _touch(self, sids: Collection[str]) -> list[Call]:
        return [Call("PEXPIRE", [self._key(sid)], [self._ttl]) for sid in sids]

    def _revoke(self, condition: Identity) -> Call:
        key = revocation_key(self.settings.key_prefix, condition_key(condition))
        now = "" if self._clock is None else f"{self._clock():.6f}"
        return Call("revoke", [key], [now, self._ttl + int(CLOCK_MARGIN * 1000) if self._ttl else 0])

    def _revocations(self, identities: Sequence[Identity]) -> dict[str, Call]:
        keys = dict.fromkeys(key for identity in identities for key in condition_keys(identity))
        return {key: Call("GET", [revocation_key(self.settings.key_prefix, key)]) for key in keys}

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.to_thread(call)


def _batches(calls: Collection[Call]) -> Iterator[list[Call]]:
    listed = list(calls)
    for start in range(0, len(listed), BATCH):
        yield listed[start : start + BATCH]


def _loaded(answers: Sequence[Any], identity: Identity) -> SessionRecord | None:
    text, *times = answers
    if text is None:
        return None
    owner, authenticated, data = json.loads(text)
    if owner != identity or is_revoked(authenticated, [float(at) for at in times if at is not None]):
        return None
    return SessionRecord(owner, authenticated, data)


def _loaded_many(
    wanted: Sequence[tuple[str, Identity]], answers: Mapping[tuple[str, str], Any]
) -> list[SessionRecord | None]:
    found: list[SessionRecord | None] = []
    for sid, identity in wanted:
        times = [answers["revoked", key] for key in condition_keys(identity)]
        found.append(_loaded([answers.get(("sid", sid)), *times], identity))
    return found


def _latest(identities: Sequence[Identity], answers: Mapping[str, Any]) -> list[float]:
    times = {key: float(answer) for key, answer in answers.items() if answer is not None}
    return [max((times.get(key, 0.0) for key in condition_keys(identity)), default=0.0) for identity in identities]
