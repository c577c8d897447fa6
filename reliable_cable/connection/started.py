"""Compares the runs of `subscribed` before and during a restore: the streams that it starts, and the member.

See Protocol: Restore.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reliable_cable.channel import Channel
from reliable_cable.exceptions import ChannelError
from reliable_cable.reply import PresenceJoin, Reply, StreamStart

from .streams import SubscriptionStreams


@dataclass(frozen=True, slots=True)
class Started:
    """The streams that `subscribed` started when it last ran, and the member that it added to presence.

    Since then, actions may have stopped some of these streams, or changed the member.

    Args:
        streams: the names of the streams.
        member: the id and info of the member, or None if `subscribed` did not join.
    """

    streams: tuple[str, ...]
    member: tuple[str, Any] | None

    @classmethod
    def by(cls, reply: Reply) -> Started:
        """Create an object from the reply of `subscribed`."""
        return cls(tuple(_starts(reply)), _member(reply))

    @classmethod
    def load(cls, record: Mapping[str, Any]) -> Started | None:
        """Create an object from the record of a subscription. Return None if an earlier release wrote the record."""
        data = record.get("subscribed")
        if data is None:
            return None
        return cls(tuple(data["streams"]), tuple(data["member"]) if data["member"] is not None else None)

    def dump(self) -> dict[str, Any]:
        """Return the streams and the member as JSON values, for the record of the subscription."""
        return {"streams": list(self.streams), "member": list(self.member) if self.member is not None else None}


def compare_streams(record: Mapping[str, Any], reply: Reply) -> list[dict[str, Any]] | None:
    """Return the streams of a restored subscription, after `subscribed` has run again.

    A stream that `subscribed` started last time but not now is left out. A stream that it starts now but did not start
    last time is new. Streams that actions started are kept, and streams that actions stopped remain stopped.

    Args:
        record: the record of the subscription.
        reply: the reply of `subscribed`.

    Returns:
        The records of the streams. New streams have `after` in place of `id` and `first`. None if the streams
        of the subscription are uncertain: an earlier release wrote the record, and the recorded streams are not the
        streams that `subscribed` starts now.
    """
    starts = _starts(reply)
    recorded = {stream["name"]: stream for stream in record["streams"]}
    started = Started.load(record)
    if started is None and starts.keys() != recorded.keys():
        return None
    before = set(started.streams) if started is not None else set(recorded)
    stopped = _stopped(reply, before | recorded.keys())
    gone = (before | stopped) - starts.keys()
    streams = [
        {
            **recorded.get(name, {"after": start.after}),
            "name": name,
            "whisper": start.whisper,
            "presence": start.presence,
        }
        for name, start in starts.items()
        if name in recorded or name not in before or name in stopped
    ]
    return streams + [stream for name, stream in recorded.items() if name not in starts and name not in gone]


def compare_member(record: Mapping[str, Any], reply: Reply) -> tuple[str, Any] | None:
    """Return the member of a restored subscription, after `subscribed` has run again; None if there is no member.

    The recorded member is kept if `subscribed` joins with the same id and info as last time. If an action has removed
    the member, and only the info differs from last time, the member is not added again.
    """
    recorded = tuple(record["member"]) if record["member"] is not None else None
    started, member = Started.load(record), _member(reply)
    if started is None or member == started.member:
        return recorded
    if recorded is None and member is not None and started.member is not None and member[0] == started.member[0]:
        return None
    return member


def member_after(record: Mapping[str, Any], reply: Reply) -> tuple[str, Any] | None:
    """Return the member of a subscription after the joins and leaves of a reply, or None if it has none."""
    if reply.presence:
        return _member(reply)
    return tuple(record["member"]) if record["member"] is not None else None


def _starts(reply: Reply) -> dict[str, StreamStart]:
    """Return the streams that a reply starts and does not stop afterwards."""
    starts: dict[str, StreamStart] = {}
    for operation in reply.streams:
        if isinstance(operation, StreamStart):
            starts[operation.name] = operation
        elif operation.name is None:
            starts.clear()
        else:
            starts.pop(operation.name, None)
    return starts


def _stopped(reply: Reply, names: set[str]) -> set[str]:
    """Return the streams among `names` that a reply stops."""
    stops = {operation.name for operation in reply.streams if not isinstance(operation, StreamStart)}
    return names if None in stops else names & stops


def _member(reply: Reply) -> tuple[str, Any] | None:
    """Return the member after the joins and leaves of a reply, or None if there is none."""
    last = reply.presence[-1] if reply.presence else None
    return (last.id, last.info) if isinstance(last, PresenceJoin) else None


def check_joins(channel: Channel, handler: str, reply: Reply, subscription: SubscriptionStreams | None) -> None:
    """Check that the subscription has a stream if a handler joins presence.

    Args:
        channel: the channel of the handler.
        handler: the name of the handler.
        reply: the reply of the handler.
        subscription: the subscription. None means that it is being made or restored, or has ended. In this case,
            only `subscribed` is checked, because other handlers do not start all streams of a subscription.

    Raises:
        ChannelError: the handler joins presence, and the subscription has no stream after the reply.
    """
    if reply.rejected or (subscription is None and handler != "subscribed"):
        return
    former = set(subscription.streams) if subscription is not None else set()
    streams = {*_starts(reply), *(former - _stopped(reply, former))}
    if not streams and any(isinstance(operation, PresenceJoin) for operation in reply.presence):
        raise ChannelError(
            f"{type(channel).__name__}: {handler} called presence.join(), but the subscription has no stream; call "
            "stream_from() or stream_for(), too."
        )
