"""The presence store in Redis. Lua scripts change the sorted sets and hashes of each stream, and publish the events."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from reliable_cable.conf import CableSettings
from reliable_cable.stores.redis.client import LINEAGE, NEW_TOKEN, Argument, BaseClient, Call
from reliable_cable.stores.redis.listening import ChannelListener
from reliable_cable.stores.redis.store import RedisStore, sync_twin

from .base import Member, PresenceEvent, PresenceInfo, PresenceListener, PresenceMissed, PresenceStore, Refreshed

Deliver = Callable[[PresenceEvent | PresenceMissed], None]

#: The maximum number of scripts in one round trip.
SCRIPTS_PER_ROUND_TRIP: Final = 200
#: The maximum number of sessions that a script removes in one run, because a running script blocks Redis.
EXPIRE_SIZE: Final = 500
#: The maximum number of rounds in each `expire`. Each round handles up to SCRIPTS_PER_ROUND_TRIP streams of each
#: partition. Streams that remain after the last round are handled by the next `expire`.
EXPIRE_ROUNDS: Final = 50


class RedisPresenceStore(RedisStore, PresenceStore):
    """Stores the members of streams in the Redis server at `settings.redis_url`.

    Times come from Redis's clock, because the clocks of hosts differ. An expired session is still present, and can be
    refreshed, until a process calls `expire`.

    Args:
        settings: the settings; `redis_url`, `redis_options`, `key_prefix`, `presence_ttl`, `presence_grace` and
            `sessions_ttl` are used.
        clock: a clock for tests, which returns seconds since 1970. It replaces Redis's clock.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock)

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(self, name: str, stream: str, *args: Argument) -> Call:
        keys_of = self.client.names
        tag = keys_of.stream(stream)
        names = ("presence", "expiries", "sessions", "members", "left", "infos", "queue")
        partition = keys_of.partition(stream)
        keys = [*(f"{tag}:{name}" for name in names), _index(partition), _sweeps(partition)]
        shared: list[Argument] = [LINEAGE, NEW_TOKEN, self.script_time(), stream, self.channel_argument(stream)]
        return Call(f"presence_{name}", keys, [*shared, self.settings.presence_ttl, self.memory, *args])

    # -- members ------------------------------------------------------------------------------------------------------

    async def ajoin_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Add sessions, or refresh them."""
        calls = [self._join(member) for member in members]
        replies = await self.client.arun_all(calls, size=SCRIPTS_PER_ROUND_TRIP)
        return _events((member.stream for member in members), replies)

    join_all = sync_twin(ajoin_all)

    def _join(self, member: Member) -> Call:
        # `json.dumps` escapes all characters beyond ASCII, so that even strings that UTF-8 cannot encode can be stored.
        id_, info = json.dumps(member.id), json.dumps(member.info, allow_nan=False)
        return self._call("join", member.stream, member.session, id_, info, int(member.joined), member.replaces)

    async def aleave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Remove a session."""
        return _events([stream], await self.client.arun(self._call("leave", stream, session), idempotent=True))

    leave = sync_twin(aleave)

    async def ashorten(self, stream: str, session: str) -> None:
        """Let a session expire after `settings.presence_grace` seconds, unless it expires earlier."""
        await self.client.arun(self._call("shorten", stream, session, self.settings.presence_grace), idempotent=True)

    shorten = sync_twin(ashorten)

    async def arefresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Renew the TTL of sessions, with one script for each stream."""
        calls = [self._call("refresh", stream, *sessions) for stream, sessions in held.items()]
        unknown: list[tuple[str, str]] = []
        incarnations: dict[str, str] = {}
        replies = await self.client.arun_all(calls, size=SCRIPTS_PER_ROUND_TRIP)
        for stream, (incarnation, sessions) in zip(held, replies, strict=True):
            incarnations[stream] = incarnation.decode()
            unknown += [(stream, session.decode()) for session in sessions]
        return Refreshed(unknown, incarnations)

    refresh = sync_twin(arefresh)

    async def aexpire(self) -> list[PresenceEvent]:
        """Remove the expired sessions of all streams, including those of other processes."""
        events: list[PresenceEvent] = []
        args: list[Argument] = [SCRIPTS_PER_ROUND_TRIP, self.settings.presence_ttl, self.outage]
        for _ in range(EXPIRE_ROUNDS):
            partitions = await self._used_partitions()
            calls = [Call("due", [_index(each), _sweeps(each)], [self.script_time(), *args]) for each in partitions]
            replies = await self.client.arun(*calls) if calls else []
            due = [name.decode() for names in replies for name in names]
            if not due:
                break
            expired = [self._call("expire", stream, EXPIRE_SIZE) for stream in due]
            events += _events(due, await self.client.arun(*expired))
        return events

    async def _used_partitions(self) -> list[str]:
        """Return the partitions that have members, or had some since the last `expire`. A single server has one."""
        partitions = self.client.names.partitions()
        if not self.client.names.cluster:
            return list(partitions)
        found = await self.client.arun_all([Call("EXISTS", [_index(each), _sweeps(each)]) for each in partitions])
        return [partition for partition, exists in zip(partitions, found, strict=True) if exists]

    expire = sync_twin(aexpire)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def ainfo(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Return the members of a stream."""
        call = self._call("info", stream, int(records), int(overdue))
        ((incarnation, total, items),) = await self.client.arun(call, idempotent=True)
        members = [(json.loads(id_), text.split(b" ", 2)) for id_, text in zip(items[::2], items[1::2], strict=True)]
        members.sort(key=lambda member: int(member[1][1]))
        infos = {id_: json.loads(info) for id_, (_, _, info) in members}
        return PresenceInfo(total, infos if records else None, incarnation.decode())

    info = sync_twin(ainfo)

    async def aleft_within(self, stream: str, seconds: float) -> list[str]:
        """Return the ids of members that left in the last `seconds` and have not joined again, in order of leaving."""
        (ids,) = await self.client.arun(self._call("left", stream, seconds), idempotent=True)
        return [json.loads(id_) for id_ in ids]

    left_within = sync_twin(aleft_within)

    # -- announcing ---------------------------------------------------------------------------------------------------

    def listen(self, deliver: Deliver) -> RedisPresenceListener:
        """Return a listener that calls `deliver` with events on the running event loop."""
        return RedisPresenceListener(self.client, deliver)


class RedisPresenceListener(ChannelListener, PresenceListener):
    """Announces the events that the scripts publish on the channels of the streams."""

    def __init__(self, client: BaseClient, deliver: Deliver) -> None:
        super().__init__(client)
        self._deliver = deliver

    def _receive(self, stream: str, message: bytes | None) -> None:
        if message is None:
            self._deliver(PresenceMissed(stream))
        elif message[:1] in (b"j", b"l"):
            event = json.loads(message[1:])
            self._deliver(_event(stream, message[:1], event["id"], event["info"]))


def _index(partition: str) -> str:
    """Return the key of the index of a partition's streams by their first expiry."""
    return f"{partition}:presence"


def _sweeps(partition: str) -> str:
    """Return the key under which the last search for expired sessions of a partition is recorded."""
    return f"{partition}:presence-sweeps"


def _event(stream: str, kind: bytes, id_: str, info: Any) -> PresenceEvent:
    return PresenceEvent(stream, "join" if kind == b"j" else "leave", id_, info)


def _events(streams: Iterable[str], replies: Iterable[Any]) -> list[PresenceEvent]:
    """Return the events in the replies of scripts. The first reply is about the first stream, and so on."""
    return [
        _event(stream, kind, json.loads(id_), json.loads(info))
        for stream, reply in zip(streams, replies, strict=True)
        for kind, id_, info in reply
    ]
