"""What the processes tell each other: which connections to close, and which sessions went on elsewhere.

Control messages are kept messages of a reserved stream, which every hub with connections reads as it does any other:
so it works with every stream store, and a process that was cut off reads what it missed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from reliable_cable.conf import CONTROL_POLICY, CONTROL_STREAM
from reliable_cable.exceptions import BroadcastError, StoreError
from reliable_cable.identity import Identity, condition_key, condition_keys, matches
from reliable_cable.stores.sessions.base import is_revoked
from reliable_cable.stores.streams.base import Message

if TYPE_CHECKING:
    from reliable_cable.connection.connection import CableSession

    from .hub import Hub
    from .stream import HubStream

logger = logging.getLogger("reliable_cable")

#: Seconds within which takeovers are announced together.
ANNOUNCE_DELAY: Final = 0.02
#: Takeovers that one message announces.
BATCH: Final = 500
#: Seconds until a store that failed is tried again.
RETRY_DELAY: Final = 1.0
#: Seconds over which connections are closed that have to be authenticated again.
RENEWAL_TIME = 10.0


def revocation(condition: Identity, at: float, *, reconnect: bool) -> Message:
    """Return the message that lets every process close the connections of a kind.

    Args:
        condition: the identifiers that they all have.
        at: close connections that were authenticated before this time, in seconds since 1970 by the session store's
            clock.
        reconnect: whether their clients are to come back.
    """
    return Message(json.dumps({"revoke": dict(condition), "at": at, "reconnect": reconnect}))


class Control:
    """One hub's part of it: hears control messages while the hub has connections, and announces takeovers.

    It also measures the clocks of the stores while the hub has connections.

    Args:
        hub: whose connections it closes.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._uses = 0
        self._following: asyncio.Task[HubStream] | None = None
        self._measuring: list[asyncio.Task[None]] = []
        #: What was revoked of late, by condition, for connections that were not ready yet: when, and `reconnect`.
        self._revoked: OrderedDict[str, tuple[float, bool]] = OrderedDict()
        self._takeovers: list[tuple[str, str]] = []
        self._announcing: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None

    # -- hearing ------------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """A connection comes: hear, from now on and what is kept of before."""
        self._uses += 1
        if self._following is None:
            loop = asyncio.get_running_loop()
            self._following = loop.create_task(self._follow(), name="cable-control")
            clocks = (self._hub.engine.session_clock, self._hub.engine.stream_clock)
            self._measuring = [loop.create_task(clock.keep(), name="cable-clock") for clock in clocks]

    def release(self) -> None:
        """A connection has gone; after the last one, there is nothing to be closed."""
        self._uses -= 1
        if self._uses == 0 and self._following is not None:
            for measuring in self._measuring:
                measuring.cancel()
            following, self._following = self._following, None
            if following.done():
                self._hub.unfollow(following.result())
            else:
                following.cancel()

    async def _follow(self) -> HubStream:
        failing = False
        # A revocation is compared with the time at which a connection was authenticated, by this clock.
        await self._hub.engine.session_clock.ready()
        while True:
            try:
                return await self._hub.follow(CONTROL_STREAM, self)
            except Exception as error:
                if not failing:
                    logger.warning("Control messages cannot be read; trying again: %s", error)
                failing = True
            await asyncio.sleep(RETRY_DELAY)

    def hear(self, data: str) -> None:
        """Take a control message."""
        try:
            message: dict[str, Any] = json.loads(data)
            if "revoke" in message:
                self._revoke(message["revoke"], message["at"], reconnect=message["reconnect"])
            for sid, heir in message.get("supersede", ()):
                self._supersede(sid, heir)
        except Exception:
            # Of another version, say.
            logger.exception("A control message failed: %.200s", data)

    def _revoke(self, condition: Identity, at: float, *, reconnect: bool) -> None:
        key = condition_key(condition)
        self._revoked[key] = (at, reconnect)
        self._revoked.move_to_end(key)
        if len(self._revoked) > CONTROL_POLICY.history_size:
            self._revoked.popitem(last=False)
        for session in list(self._hub.connections.values()):
            if matches(condition, session.identity) and is_revoked(session.authenticated, [at]):
                _send_away(session, at, reconnect=reconnect)

    def revoked(self, session: CableSession) -> bool:
        """Whether a connection is of a kind that was revoked since it was authenticated; it is then sent away."""
        for key in condition_keys(session.identity):
            at, reconnect = self._revoked.get(key, (0.0, False))
            if is_revoked(session.authenticated, [at]):
                _send_away(session, at, reconnect=reconnect)
                return True
        return False

    def _supersede(self, sid: str, heir: str) -> None:
        own = self._hub.connections.get(heir)
        if own is not None:
            own.announcing = False
        found = self._hub.holders.get(sid)
        # Not the heir's own heir; nor a connection that took the session over later, as its announcement will tell.
        if found is not None and heir not in found.sids and not found.announcing:
            found.supersede()

    # -- announcing ---------------------------------------------------------------------------------------------------

    def announce(self, sid: str, heir: CableSession) -> None:
        """Let whatever process still has the connection of session `sid` close it: the session goes on in `heir`."""
        heir.announcing = True
        self._takeovers.append((sid, heir.sid))
        if self._announcing is None:
            self._announcing = self._hub.spawn(self._announce())

    async def _announce(self) -> None:
        try:
            await asyncio.sleep(ANNOUNCE_DELAY)
            while self._takeovers:
                batch, self._takeovers = self._takeovers[:BATCH], self._takeovers[BATCH:]
                await self._append(Message(json.dumps({"supersede": batch}), idempotency_key=secrets.token_hex(8)))
        finally:
            self._announcing = None

    async def _append(self, message: Message) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._hub.settings.sessions_ttl
        while True:
            try:
                await self._hub.engine.streams.aappend([(CONTROL_STREAM, message)])
            except (BroadcastError, StoreError) as error:
                if loop.time() > until:
                    logger.error("Takeovers of sessions could not be announced: %s", error)
                    return
            else:
                return
            await asyncio.sleep(RETRY_DELAY)

    # -- losing -------------------------------------------------------------------------------------------------------

    def lost(self) -> None:
        """Control messages are missing for good: find out what they may have said."""
        logger.warning("Control messages were lost: all connections are checked for what was revoked meanwhile.")
        if self._checking is None:
            self._checking = self._hub.spawn(self._check())

    async def _check(self) -> None:
        try:
            while True:
                try:
                    sure = self._hub.sessions.enabled and await self._hub.sessions.refresh()
                    sessions = list(self._hub.connections.values())
                    times = await self._hub.sessions.store.arevoked([session.identity for session in sessions])
                    break
                except Exception as error:
                    logger.debug("What was revoked could not be read; trying again: %s", error)
                    await asyncio.sleep(RETRY_DELAY)
        finally:
            self._checking = None
        for session, at in zip(sessions, times, strict=True):
            if is_revoked(session.authenticated, [at]):
                _send_away(session, at, reconnect=True)
            elif not sure:
                # The store lost data, and perhaps what was revoked with it: let all of them be authenticated again.
                delay = random.uniform(0, RENEWAL_TIME)  # noqa: S311 - spreads load, no secret
                asyncio.get_running_loop().call_later(delay, session.restart)
        if not sure:
            logger.warning("What was revoked may have been lost: all clients are sent away to authenticate again.")


def _send_away(session: CableSession, at: float, *, reconnect: bool) -> None:
    # One that was authenticated afterwards, as far as clocks can tell, has perhaps every right: let it try again.
    session.revoke(reconnect=reconnect or session.authenticated > at)
