"""Presence in Redis: sorted sets and hashes for each stream, changed by Lua scripts, which also publish the events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from reliable_cable.conf import CableSettings
from reliable_cable.stores.redis.client import LINEAGE, Argument, Call, client_for
from reliable_cable.stores.redis.keys import stream_channel, stream_tag
from reliable_cable.stores.redis.pubsub import pubsub_of

from .base import Member, PresenceEvent, PresenceInfo, PresenceListener, PresenceMissed, PresenceStore, Refreshed

T = TypeVar("T")
Deliver = Callable[[PresenceEvent | PresenceMissed], None]

#: Calls in one round trip.
BATCH: Final = 200
#: Sessions that one script removes: Redis does nothing else meanwhile.
SWEEP_SIZE: Final = 500
#: Round trips in which one `expire` looks for streams that are due; whatever is left is for the next one.
SWEEPS: Final = 50


class RedisPresenceStore(PresenceStore):
    """Keeps who is there in the Redis of `settings.redis_url`.

    Times are those of Redis's own clock, so that servers need not agree. Only `expire` removes sessions whose time is
    over, in whichever process: until then they are there, and can be refreshed.

    Args:
        settings: `redis_url`, `redis_options`, `key_prefix`, `presence_ttl` and `sessions_ttl`.
        clock: for tests; None: Redis's own.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock or time.time)
        self._clock = clock
        self.client = client_for(settings)
        self._index = f"{settings.key_prefix}:presence"
        self._sweeps = f"{settings.key_prefix}:presence-sweeps"

    def channel(self, stream: str) -> str:
        """Return the pub/sub channel of a stream."""
        return stream_channel(self.settings.key_prefix, stream)

    def close(self) -> None:
        """Close the connections of sync code."""
        self.client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self.client.aclose()

    # -- what scripts are given ---------------------------------------------------------------------------------------

    def _call(self, name: str, stream: str, *args: Argument) -> Call:
        tag = stream_tag(self.settings.key_prefix, stream)
        keys = [f"{tag}:presence", f"{tag}:expiries", f"{tag}:sessions", f"{tag}:members", f"{tag}:left", self._index]
        fresh = secrets.token_hex(8)
        times = (self.settings.presence_ttl, self.memory)
        return Call(
            f"presence_{name}", keys, [LINEAGE, self._now(), stream, self.channel(stream), fresh, *times, *args]
        )

    def _now(self) -> str:
        return "" if self._clock is None else f"{self._clock():.6f}"

    def _join(self, member: Member) -> Call:
        # As ASCII, which is good JSON and holds whatever a Python string can.
        id_, info = json.dumps(member.id), json.dumps(member.info, allow_nan=False)
        return self._call("join", member.stream, member.session, id_, info, int(member.joined))

    def _info(self, stream: str, records: bool, overdue: bool) -> Call:
        return self._call("info", stream, int(records), int(overdue))

    # -- members ------------------------------------------------------------------------------------------------------

    def join_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Add or refresh sessions."""
        calls = [self._join(member) for member in members]
        answers = [answer for batch in _batches(calls) for answer in self.client.run(*batch, again=True)]
        return _events((member.stream for member in members), answers)

    async def ajoin_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Async twin of `join_all`."""
        calls = [self._join(member) for member in members]
        answers = [answer for batch in _batches(calls) for answer in await self.client.arun(*batch, again=True)]
        return _events((member.stream for member in members), answers)

    def leave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Remove a session."""
        return _events([stream], self.client.run(self._call("leave", stream, session), again=True))

    async def aleave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Async twin of `leave`."""
        return _events([stream], await self.client.arun(self._call("leave", stream, session), again=True))

    def refresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Give sessions a new time: one command for each stream."""
        calls = [self._call("refresh", stream, *sessions) for stream, sessions in held.items()]
        return _refreshed(held, [answer for batch in _batches(calls) for answer in self.client.run(*batch, again=True)])

    async def arefresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Async twin of `refresh`."""
        calls = [self._call("refresh", stream, *sessions) for stream, sessions in held.items()]
        return _refreshed(
            held, [answer for batch in _batches(calls) for answer in await self.client.arun(*batch, again=True)]
        )

    def expire(self) -> list[PresenceEvent]:
        """Remove what is over, of every stream that any server has ever served."""
        events: list[PresenceEvent] = []
        for _ in range(SWEEPS):
            due = _names(self.client.run(self._due())[0])
            if not due:
                break
            events += _events(due, self.client.run(*self._expire(due)))
        return events

    async def aexpire(self) -> list[PresenceEvent]:
        """Async twin of `expire`."""
        events: list[PresenceEvent] = []
        for _ in range(SWEEPS):
            due = _names((await self.client.arun(self._due()))[0])
            if not due:
                break
            events += _events(due, await self.client.arun(*self._expire(due)))
        return events

    def _due(self) -> Call:
        return Call("due", [self._index, self._sweeps], [self._now(), BATCH, self.settings.presence_ttl, self.outage])

    def _expire(self, streams: Iterable[str]) -> list[Call]:
        return [self._call("expire", stream, SWEEP_SIZE) for stream in streams]

    # -- reading ------------------------------------------------------------------------------------------------------

    def info(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Return who is there."""
        return _presence_info(self.client.run(self._info(stream, records, overdue), again=True)[0], records)

    async def ainfo(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Async twin of `info`."""
        return _presence_info((await self.client.arun(self._info(stream, records, overdue), again=True))[0], records)

    def left_within(self, stream: str, seconds: float) -> list[str]:
        """Return who left lately."""
        return _ids(self.client.run(self._call("left", stream, seconds), again=True)[0])

    async def aleft_within(self, stream: str, seconds: float) -> list[str]:
        """Async twin of `left_within`."""
        return _ids((await self.client.arun(self._call("left", stream, seconds), again=True))[0])

    # -- announcing ---------------------------------------------------------------------------------------------------

    def listen(self, deliver: Deliver) -> RedisPresenceListener:
        """Return a listener that hands events to `deliver`, on the event loop that calls this."""
        return RedisPresenceListener(self, deliver)

    async def _run(self, call: Callable[[], T]) -> T:
        raise NotImplementedError  # every method has a twin of its own


class RedisPresenceListener(PresenceListener):
    """Announces what the scripts publish on the streams' channels, where the streams' messages are published, too."""

    def __init__(self, store: RedisPresenceStore, deliver: Deliver) -> None:
        self._store = store
        self._deliver = deliver
        self._pubsub = pubsub_of(store.client)
        self._ears: dict[str, Callable[[bytes | None], None]] = {}

    async def subscribe(self, stream: str) -> None:
        """Announce this stream's events from now on."""
        if stream not in self._ears:
            ear = self._ears[stream] = partial(self._heard, stream)
            await self._pubsub.subscribe(self._store.channel(stream), ear)

    async def unsubscribe(self, stream: str) -> None:
        """Announce this stream's events no more."""
        ear = self._ears.pop(stream, None)
        if ear is not None:
            await self._pubsub.unsubscribe(self._store.channel(stream), ear)

    async def close(self) -> None:
        """Leave all streams."""
        for stream in list(self._ears):
            await self.unsubscribe(stream)

    def _heard(self, stream: str, message: bytes | None) -> None:
        if message is None:
            self._deliver(PresenceMissed(stream))
        elif message[:1] in (b"j", b"l"):
            event = json.loads(message[1:])
            self._deliver(_event(stream, message[:1], event["id"], event["info"]))


def _event(stream: str, kind: bytes, id_: str, info: Any) -> PresenceEvent:
    return PresenceEvent(stream, "join" if kind == b"j" else "leave", id_, info)


def _events(streams: Iterable[str], answers: Iterable[Any]) -> list[PresenceEvent]:
    """Return the events that scripts answered, one script for each stream."""
    return [
        _event(stream, kind, json.loads(id_), json.loads(info))
        for stream, answer in zip(streams, answers, strict=True)
        for kind, id_, info in answer
    ]


def _refreshed(streams: Iterable[str], answers: Iterable[Any]) -> Refreshed:
    unknown: list[tuple[str, str]] = []
    incarnations: dict[str, str] = {}
    for stream, (incarnation, sessions) in zip(streams, answers, strict=True):
        incarnations[stream] = incarnation.decode()
        unknown += [(stream, session.decode()) for session in sessions]
    return Refreshed(unknown, incarnations)


def _presence_info(answer: Any, records: bool) -> PresenceInfo:
    incarnation, total, found = answer
    members = [(json.loads(id_), text.split(b" ", 2)) for id_, text in zip(found[::2], found[1::2], strict=True)]
    members.sort(key=lambda member: int(member[1][1]))
    infos = {id_: json.loads(info) for id_, (_, _, info) in members}
    return PresenceInfo(total, infos if records else None, incarnation.decode())


def _ids(answer: Iterable[bytes]) -> list[str]:
    return [json.loads(id_) for id_ in answer]


def _names(answer: Iterable[bytes]) -> list[str]:
    return [name.decode() for name in answer]


def _batches(calls: Sequence[Call]) -> Iterable[Sequence[Call]]:
    return (calls[start : start + BATCH] for start in range(0, len(calls), BATCH))
