"""Gives a client that came back the subscriptions of the session that it left (PROTOCOL.md, 5, 6 and 18)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from reliable_cable.channel import find_channel
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.hub.repair import RETRY_DELAY
from reliable_cable.protocol import messages
from reliable_cable.protocol.commands import parse_identifier
from reliable_cable.reply import PresenceJoin
from reliable_cable.stores.sessions.base import SessionRecord

from .subscription import Subscription

if TYPE_CHECKING:
    from .connection import CableSession

logger = logging.getLogger("reliable_cable")

#: How many of its former ids a session is still known by, to be left out of broadcasts "to others".
MAX_SIDS = 8

#: How long, in seconds, to retry `resubscribed` while a database or store cannot be reached. The client has no welcome
#: yet, and considers the connection stale after two ping intervals.
RESTORE_PATIENCE = 4.0


def make_record(session: CableSession) -> SessionRecord:
    """Return what a restore of a session needs, as of now."""
    return SessionRecord(
        session.identity,
        session.authenticated,
        {
            "sids": list(session.former),
            "alive": not session.closed,
            "left_at": session.hub.engine.session_clock.now(),
            # The client subscribes afresh, with its own request, to what is left out.
            "subscriptions": [each.record() for each in session.subscriptions.values() if each.restorable],
        },
    )


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore.

    Args:
        sid: the session that goes on.
        identifiers: what is back.
        alive: whether another process may still have its connection.
    """

    sid: str
    identifiers: list[str]
    alive: bool


async def restore(session: CableSession, sid: str, transmissions: list[str]) -> Restored | None:
    """Take over what session `sid` was subscribed to.

    Args:
        session: the new one; its connection has been authenticated.
        sid: what the client claims to have been.
        transmissions: takes the frames to be sent after the welcome.

    Returns:
        What is back; None if there is no such session of this user.
    """
    hub = session.hub
    old = hub.holders.get(sid)
    if old is not None and not old.resumable:
        old = None  # it was sent away, or superseded by another process's: the store knows
    try:
        record = old.record() if old is not None else await hub.sessions.load(sid, session.identity)
    except Exception:
        logger.exception("A session could not be loaded.")
        return None
    # Records of many come at once, if many are back at once.
    await hub.pacer.wait()
    if record is None or record.identity != session.identity:
        return None
    # A client that never hears the welcome comes back with the old id: its record stays until it expires, and says
    # that a connection has the session.
    former = replace(record, data={**record.data, "alive": True})
    if old is not None:
        # It may be a later one than the client knows of: what says that it has session `sid` is meant for this one too.
        record = replace(record, data={**record.data, "sids": [old.sid, *record.data["sids"]]})
        old.supersede()
        # What the store has may be older: the client may be back once more before this restore is done.
        hub.sessions.keep(sid, former)
    try:
        identifiers = await _restore_all(session, sid, record.data, transmissions)
        alive = bool(record.data["alive"]) and old is None
    except Exception:
        # Of another version, say. The client subscribes afresh, with its positions.
        logger.exception("A session record could not be read.")
        for subscription in session.subscriptions.values():
            subscription.end()
        session.subscriptions.clear()
        session.former = ()
        transmissions.clear()
        return None
    await hub.sessions.take_over(session, sid, former)
    await hub.pacer.wait()
    return Restored(sid, identifiers, alive)


async def _restore_all(session: CableSession, sid: str, data: Mapping[str, Any], transmissions: list[str]) -> list[str]:
    session.former = tuple(dict.fromkeys((sid, *data["sids"])))[: MAX_SIDS - 1]
    restored: list[str] = []
    until = time.monotonic() + RESTORE_PATIENCE
    incarnations = await _incarnations(session, data["subscriptions"])
    for item in data["subscriptions"]:
        if find_channel(parse_identifier(item["identifier"])[0]) is None:
            continue  # it was removed while the client was away
        if item["watching"] is not None and incarnations.get(_presence_stream(item)) != item["watching"]:
            continue  # its list of members cannot be made right: let it start afresh
        if await _restore_one(session, item, item["left_at"] or data["left_at"], transmissions, until):
            restored.append(item["identifier"])
    return restored


async def _incarnations(session: CableSession, items: Iterable[Mapping[str, Any]]) -> Mapping[str, str]:
    """Return what names the presence data, as they are now, that clients have lists of."""
    streams = {_presence_stream(item): () for item in items if item["watching"] is not None and item["streams"]}
    return (await session.hub.engine.presence.arefresh(streams)).incarnations if streams else {}


def _presence_stream(item: Mapping[str, Any]) -> str:
    names = [stream["name"] for stream in item["streams"] if stream["presence"]]
    names += [stream["name"] for stream in item["streams"]]
    return names[0] if names else ""


async def _restore_one(
    session: CableSession, item: Mapping[str, Any], left_at: float, transmissions: list[str], until: float
) -> bool:
    """Restore one subscription; return whether it was restored.

    While a database or store cannot be reached, this is retried until the time `until`, by the monotonic clock.
    """
    identifier = item["identifier"]
    while (channel := session.execution.make_channel(identifier)) is not None:
        subscription = Subscription(session, identifier, channel)
        channel.load_state(item["state"])
        retried = time.monotonic() + RETRY_DELAY < until
        try:
            await subscription.restore(item, left_at)
            reply = await session.execution.call(
                channel, "resubscribed", channel.resubscribed, channel.before_subscribe, retried=retried
            )
            if reply is not None and not reply.rejected:
                await subscription.apply_streams(reply)
                for op in reply.presence:
                    subscription.presence.member = (op.id, op.info) if isinstance(op, PresenceJoin) else None
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
        transmissions += [messages.transmission(identifier, data) for data in reply.transmissions]
        session.subscriptions[identifier] = subscription
        return True
    return False
