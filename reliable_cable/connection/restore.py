"""Restores sessions: a client that reconnects gets its subscriptions back, with their streams, state and presence.

See Protocol: Restore.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from reliable_cable.channel import Channel, find_channel
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.concurrency.retrying import RETRY_DELAY
from reliable_cable.protocol.commands import PresenceClaim, parse_identifier
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.reply import Reply

from .channels import make_channel
from .commands import Commands
from .presence import recorded_presence_stream
from .started import Started, compare_member, compare_streams, member_after
from .subscription import Subscription

#: The maximum number of ids by which a session is known. A broadcast that excludes one of them excludes the session.
MAX_SIDS: Final = 8

#: How long, in seconds, a restore may run handlers, and retry them while a database or store cannot be reached.
#: Meanwhile the client gets no welcome, and it considers the connection stale after two ping intervals.
RESTORE_TIMEOUT: Final = 4.0


@dataclass(slots=True)
class Restored:
    """The result of a restore.

    Attributes:
        sid: the id of the former session.
        identifiers: the identifiers of the restored subscriptions.
        transmissions: the messages to be sent after the welcome, as JSON text, by identifier.
        elsewhere: whether another process may still have the former connection.
    """

    sid: str
    identifiers: list[str] = field(default_factory=list)
    transmissions: dict[str, list[str]] = field(default_factory=dict)
    elsewhere: bool = False


async def restore(commands: Commands, sid: str) -> Restored | None:
    """Take over the subscriptions of a session.

    Args:
        commands: the commands of the new connection, which has been authenticated.
        sid: the id of the session that the client names.

    Returns:
        The result. None if no session with the connection's identity has that id, or if it cannot be restored.
    """
    connection = commands.connection
    hub = connection.hub
    old = hub.connections.find(sid)
    if old is not None and not old.resumable:
        old = None  # the old session has ended or was taken over, so the store has its last record
    try:
        record = old.record() if old is not None else await hub.sessions.load(sid, connection.identity)
    except Exception:
        commands.connection.log.exception("A session could not be loaded.")
        return None
    await hub.pacer.wait()
    if record is None or record.identity != connection.identity:
        return None
    if old is not None:
        # The old connection may have a newer session id than the one that the client named. Control messages for that
        # newer id must reach the new connection, too.
        record = replace(record, data={**record.data, "sids": [old.sid, *record.data["sids"]]})
        old.close(DisconnectReason.SUPERSEDED)
    # A client that does not receive the welcome returns with the same session id. So the former record stays until it
    # expires. The record gets the session id of this connection. If the takeover by this connection is announced
    # late, the client's next connection knows that id, and ignores the announcement.
    sids = [connection.sid, *record.data["sids"]][:MAX_SIDS]
    former = replace(record, data={**record.data, "alive": True, "sids": sids})
    if old is not None:
        # The client may return before this restore has ended, and the record in the store may be older than this one.
        hub.sessions.keep(sid, former)
    restored = Restored(sid)
    try:
        await _restore_all(commands, restored, record.data)
        restored.elsewhere = bool(record.data["alive"]) and old is None and connection.resumable
    except Exception:
        # A server of another version may have written the record. The client subscribes again, with its own positions.
        commands.connection.log.exception("A session record could not be read.")
        for subscription in commands.subscriptions.values():
            subscription.end()
        commands.subscriptions.clear()
        connection.sids = (connection.sid,)
        return None
    # If the connection was closed meanwhile, its session may have been forgotten.
    if connection.resumable:
        await hub.sessions.take_over(connection, sid, former)
    await hub.pacer.wait()
    return restored


async def _restore_all(commands: Commands, restored: Restored, data: Mapping[str, Any]) -> None:
    connection, items = commands.connection, data["subscriptions"]
    former_sids = tuple(dict.fromkeys((restored.sid, *data["sids"])))
    connection.sids = (connection.sid, *former_sids[: MAX_SIDS - 1])
    until = asyncio.get_running_loop().time() + RESTORE_TIMEOUT
    incarnations = await _incarnations(commands, items)
    _take_stream_ids(commands, items)
    names = dict.fromkeys(stream["name"] for item in items for stream in item["streams"])
    with commands.connection.hub.opening(names):
        await _restore_each(commands, restored, data, incarnations, until)
    _release_stream_ids(commands, items)


async def _restore_each(
    commands: Commands, restored: Restored, data: Mapping[str, Any], incarnations: Mapping[str, str], until: float
) -> None:
    loop = asyncio.get_running_loop()
    for item in data["subscriptions"]:
        if find_channel(parse_identifier(item["identifier"])[0]) is None:
            continue  # the channel was removed while the client was away
        if item["watching"] is not None and incarnations.get(recorded_presence_stream(item)) != item["watching"]:
            continue  # the presence data were lost: the client subscribes again, and requests the members
        if loop.time() > until:
            commands.connection.log.warning(
                "Restoring a session took longer than %g s. The client has to subscribe again to %r, and to all "
                "identifiers after it.",
                RESTORE_TIMEOUT,
                item["identifier"],
            )
            break
        if await _restore_one(commands, restored, item, item["left_at"] or data["left_at"], until):
            restored.identifiers.append(item["identifier"])


def _take_stream_ids(commands: Commands, items: Iterable[Mapping[str, Any]]) -> None:
    """Reserve all stream ids of the former session, so that no new stream gets one of them."""
    for item in items:
        for stream in item["streams"]:
            commands.connection.stream_ids.take(stream["name"], item["identifier"], stream["id"])


def _release_stream_ids(commands: Commands, items: Iterable[Mapping[str, Any]]) -> None:
    """Release the stream ids of streams and subscriptions that were not restored."""
    for item in items:
        subscription = commands.subscriptions.get(item["identifier"])
        for stream in item["streams"]:
            if subscription is None or stream["name"] not in subscription.streams:
                commands.connection.stream_ids.release(stream["name"], item["identifier"])


async def _incarnations(commands: Commands, items: Iterable[Mapping[str, Any]]) -> Mapping[str, str]:
    """Return the current incarnation of each stream for which the client has a list of members."""
    streams = {recorded_presence_stream(item): () for item in items if item["watching"] is not None and item["streams"]}
    return (await commands.connection.hub.engine.presence.arefresh(streams)).incarnations if streams else {}


async def _restore_one(
    commands: Commands, restored: Restored, item: Mapping[str, Any], left_at: float, until: float
) -> bool:
    """Restore one subscription. Return False if the client has to subscribe again.

    Args:
        commands: the commands of the new connection.
        restored: the object to which the transmissions are added.
        item: the record of the subscription.
        left_at: the time at which the client left, by the session store's clock.
        until: the time, by the clock of the event loop, at which to stop retrying if a database or store cannot be
            reached.
    """
    identifier = item["identifier"]
    loop = asyncio.get_running_loop()
    while (channel := make_channel(commands.connection, identifier)) is not None:
        subscription = Subscription(commands.connection, identifier, channel)
        channel.load_state(item["state"])
        retried = loop.time() + RETRY_DELAY < until
        try:
            reply = await _authorize(commands, channel, retried=retried)
            opened = reply is not None and await _open(
                subscription, item, reply, left_at, max(until, loop.time() + RETRY_DELAY)
            )
        except Exception as error:
            subscription.end()
            if retried and is_outage(error):
                await asyncio.sleep(RETRY_DELAY)
                continue
            commands.connection.log.exception("The subscription %r could not be restored.", identifier)
            return False
        if reply is None or not opened or not subscription.reserve(subscription.member):
            subscription.end()
            return False
        restored.transmissions[identifier] = reply.transmissions
        commands.subscriptions[identifier] = subscription
        return True
    return False


async def _authorize(commands: Commands, channel: Channel, *, retried: bool) -> Reply | None:
    """Run the handler that decides whether a subscription is restored.

    Return its reply, or None if it rejects the subscription or fails.
    """
    name = "resubscribed" if _has_resubscribed(channel) else "subscribed"
    handler, check = getattr(channel, name), channel.before_subscribe
    reply = await commands.call(channel, name, handler, check, retried=retried, decides=True)
    return None if reply is None or reply.rejected else reply


def _has_resubscribed(channel: Channel) -> bool:
    return type(channel).resubscribed is not Channel.resubscribed


async def _open(
    subscription: Subscription, item: Mapping[str, Any], reply: Reply, left_at: float, until: float
) -> bool:
    """Open the streams of a subscription. Return False if the client has to subscribe again."""
    if _has_resubscribed(subscription.channel):
        subscription.started = Started.load(item)
        member = await _allowed_member(subscription, member_after(item, reply), item, reply)
        await subscription.restore(item, item["streams"], member, left_at, until=until)
        await subscription.apply_streams(reply)
    else:
        streams = compare_streams(item, reply)
        if streams is None:
            return False
        subscription.started = Started.by(reply)
        member = await _allowed_member(subscription, compare_member(item, reply), item, reply)
        await subscription.restore(item, streams, member, left_at, until=until)
    # The client's list of members cannot be corrected if it belongs to another stream.
    return item["watching"] is None or subscription.presence_stream == recorded_presence_stream(item)


async def _allowed_member(
    subscription: Subscription, member: tuple[str, Any] | None, record: Mapping[str, Any], reply: Reply
) -> tuple[str, Any] | None:
    """Return the member that a subscription has after its restore, or None if it has none.

    If the client itself had requested the join, `authorize_presence` decides again. If it refuses the join, the
    subscription has no member, unless the handler itself joins presence.

    Raises:
        Exception: `authorize_presence` failed because of an outage.
    """
    if member is None or not record.get("claimed") or list(member) != record["member"]:
        return member
    allowed = await subscription.presence.authorizes(PresenceClaim(*member))
    return member if allowed else member_after({"member": None}, reply)
