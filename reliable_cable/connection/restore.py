"""Restores sessions: a client that reconnects gets its subscriptions back, with their streams, state and presence.

See Protocol: Restore.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from reliable_cable.channel import find_channel
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.concurrency.retrying import RETRY_DELAY
from reliable_cable.protocol import messages
from reliable_cable.protocol.commands import parse_identifier
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.reply import PresenceJoin

from .commands import Commands
from .subscription import Subscription

logger = logging.getLogger("reliable_cable")

#: The most ids by which a session is known. A broadcast "to others" excludes all of them.
MAX_SIDS: Final = 8

#: How long, in seconds, to retry `resubscribed` while a database or store cannot be reached. Meanwhile the client gets
#: no welcome, and it considers the connection stale after two ping intervals.
RESTORE_TIMEOUT: Final = 4.0


@dataclass(slots=True)
class Restored:
    """The result of a restore.

    Attributes:
        sid: the id of the former session.
        identifiers: the identifiers of the restored subscriptions.
        transmissions: frames to be sent after the welcome.
        elsewhere: whether another process may still have the former connection.
    """

    sid: str
    identifiers: list[str] = field(default_factory=list)
    transmissions: list[str] = field(default_factory=list)
    elsewhere: bool = False


async def restore(commands: Commands, sid: str) -> Restored | None:
    """Take over the subscriptions of a session.

    Args:
        commands: the commands of the new connection, which has been authenticated.
        sid: the id of the session that the client names.

    Returns:
        None if no session of this user has that id.
    """
    connection = commands.connection
    hub = connection.hub
    old = hub.connections.find(sid)
    if old is not None and not old.resumable:
        old = None  # it was closed or superseded, so the store has its last record
    try:
        record = old.record() if old is not None else await hub.sessions.load(sid, connection.identity)
    except Exception:
        logger.exception("A session could not be loaded.")
        return None
    await hub.pacer.wait()
    if record is None or record.identity != connection.identity:
        return None
    if old is not None:
        # The old connection may have a newer session id. Control messages for that id must reach the new connection,
        # too.
        record = replace(record, data={**record.data, "sids": [old.sid, *record.data["sids"]]})
        old.close(DisconnectReason.SUPERSEDED)
    # A client that does not receive the welcome returns with the same session id, so the former record stays until it
    # expires. It contains the id of this connection. By this id, a takeover that is announced late is recognised as an
    # old one, and does not close the connection of the client that has returned.
    sids = [connection.sid, *record.data["sids"]][:MAX_SIDS]
    former = replace(record, data={**record.data, "alive": True, "sids": sids})
    if old is not None:
        # The record in the store may be older, and the client may return before this restore has ended.
        hub.sessions.keep(sid, former)
    restored = Restored(sid)
    try:
        await _restore_all(commands, restored, record.data)
        restored.elsewhere = bool(record.data["alive"]) and old is None and connection.resumable
    except Exception:
        # A server of another version may have written the record. The client subscribes again, with its own positions.
        logger.exception("A session record could not be read.")
        for subscription in commands.subscriptions.values():
            subscription.end()
        commands.subscriptions.clear()
        connection.sids = (connection.sid,)
        return None
    # If the connection was closed meanwhile, its session may have to be forgotten.
    if connection.resumable:
        await hub.sessions.take_over(connection, sid, former)
    await hub.pacer.wait()
    return restored


async def _restore_all(commands: Commands, restored: Restored, data: Mapping[str, Any]) -> None:
    connection = commands.connection
    former_sids = tuple(dict.fromkeys((restored.sid, *data["sids"])))
    connection.sids = (connection.sid, *former_sids[: MAX_SIDS - 1])
    until = asyncio.get_running_loop().time() + RESTORE_TIMEOUT
    incarnations = await _incarnations(commands, data["subscriptions"])
    for item in data["subscriptions"]:
        if find_channel(parse_identifier(item["identifier"])[0]) is None:
            continue  # the channel was removed while the client was away
        if item["watching"] is not None and incarnations.get(_presence_stream(item)) != item["watching"]:
            continue  # the presence data were lost: the client subscribes again, and requests the members
        if await _restore_one(commands, restored, item, item["left_at"] or data["left_at"], until):
            restored.identifiers.append(item["identifier"])


async def _incarnations(commands: Commands, items: Iterable[Mapping[str, Any]]) -> Mapping[str, str]:
    """Return the current incarnation of each stream whose members the client was sent."""
    streams = {_presence_stream(item): () for item in items if item["watching"] is not None and item["streams"]}
    return (await commands.connection.hub.engine.presence.arefresh(streams)).incarnations if streams else {}


def _presence_stream(item: Mapping[str, Any]) -> str:
    names = [stream["name"] for stream in item["streams"] if stream["presence"]]
    names += [stream["name"] for stream in item["streams"]]
    return names[0] if names else ""


async def _restore_one(
    commands: Commands, restored: Restored, item: Mapping[str, Any], left_at: float, until: float
) -> bool:
    """Restore one subscription. Return whether it was restored.

    Args:
        commands: the commands of the new connection.
        restored: receives the transmissions.
        item: the record of the subscription.
        left_at: when the client left, by the session store's clock.
        until: when to stop retrying if a database or store cannot be reached, by the clock of the event loop.
    """
    identifier = item["identifier"]
    loop = asyncio.get_running_loop()
    while (channel := commands.make_channel(identifier)) is not None:
        subscription = Subscription(commands.connection, identifier, channel)
        channel.load_state(item["state"])
        retry_at = loop.time() + RETRY_DELAY
        retried = retry_at < until
        try:
            await subscription.restore(item, left_at, until=max(until, retry_at))
            reply = await commands.call(
                channel, "resubscribed", channel.resubscribed, channel.before_subscribe, retried=retried
            )
            if reply is not None and not reply.rejected:
                await subscription.apply_streams(reply)
                for operation in reply.presence:
                    subscription.presence.member = (
                        (operation.id, operation.info) if isinstance(operation, PresenceJoin) else None
                    )
        except Exception as error:
            subscription.end()
            if retried and is_outage(error):
                await asyncio.sleep(RETRY_DELAY)
                continue
            logger.exception("The subscription %s could not be restored.", identifier)
            return False
        if reply is None or reply.rejected:
            subscription.end()
            return False
        restored.transmissions += [messages.transmission(identifier, data) for data in reply.transmissions]
        commands.subscriptions[identifier] = subscription
        return True
    return False
