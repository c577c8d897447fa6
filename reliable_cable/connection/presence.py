"""The presence of one subscription: its member, and its client's list of the others (PROTOCOL.md, 14)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from reliable_cable.concurrency.outages import is_outage
from reliable_cable.hub.presence import PresenceService
from reliable_cable.hub.rosters import PresenceList
from reliable_cable.protocol import messages
from reliable_cable.protocol.commands import PresenceClaim
from reliable_cable.reply import PresenceJoin, Reply
from reliable_cable.stores.presence.base import UNHEARD_TIME

from .handlers import invoke

if TYPE_CHECKING:
    from .connection import CableSession
    from .subscription import Subscription

logger = logging.getLogger("reliable_cable")


def member_key(sid: str, identifier: str) -> str:
    """Return by which key a session's subscription is a member."""
    return f"{sid}:{hashlib.blake2b(identifier.encode(), digest_size=8).hexdigest()}"


def blank_record(sid: str, identifier: str) -> dict[str, Any]:
    """Return what `Membership.record` does of a subscription that has nothing to do with presence."""
    return {"member": None, "watching": None, "key": member_key(sid, identifier)}


class Membership:
    """Who a subscription is in its presence stream, and what its client was told of the others.

    Args:
        subscription: whose it is.
    """

    __slots__ = ("_former_key", "_key", "_list", "_pending", "_restored", "_subscription", "member")

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        #: Id and info of who joined.
        self.member: tuple[str, Any] | None = None
        self._key = member_key(subscription.session.sid, subscription.identifier)
        #: Joins that wait for the history to be sent.
        self._pending: list[PresenceClaim | PresenceJoin] = []
        #: The key in the session that was left, until its member was taken over.
        self._former_key: str | None = None
        #: The list that the client's is part of, if it asked who is there.
        self._list: PresenceList | None = None
        #: The incarnation that a restored client's list is right by.
        self._restored: str | None = None

    @property
    def _session(self) -> CableSession:
        return self._subscription.session

    @property
    def _service(self) -> PresenceService:
        return self._subscription.session.hub.presence

    @property
    def _stream(self) -> str | None:
        return self._subscription.presence_stream

    # -- the member -------------------------------------------------------------------------------------------------

    async def apply(self, reply: Reply) -> None:
        """Join and leave as a handler asked for."""
        for op in reply.presence:
            if isinstance(op, PresenceJoin):
                await self.join(op.id, op.info)
            else:
                await self.leave()

    async def authorizes(self, claim: PresenceClaim) -> bool:
        """Return whether the channel lets the client join by itself. The error of an outage is raised."""
        channel = self._subscription.channel
        authorize = getattr(channel, "authorize_presence", None)
        if authorize is None:
            logger.warning("%s lets no client join presence.", type(channel).__name__)
            return False
        try:
            return bool(await invoke(partial(authorize, claim.id, claim.info)))
        except Exception as error:
            if is_outage(error):
                raise
            logger.exception("%s.authorize_presence failed.", type(channel).__name__)
            return False

    async def join(self, id_: str, info: Any) -> None:
        """Join the presence stream, or update what is known of the member."""
        stream = self._stream
        if stream is None or self._session.closed:
            return
        self.member = (id_, info)
        await self._service.join(stream, self._key, id_, info)
        self._session.changed()

    def join_later(self, joins: Iterable[PresenceClaim | PresenceJoin]) -> None:
        """Join when `join_pending` is called."""
        self._pending += joins

    async def join_pending(self) -> None:
        """Make the joins that wait."""
        while self._pending:
            join = self._pending.pop(0)
            await self.join(join.id, join.info)

    async def leave(self) -> None:
        """Leave the presence stream; joins that wait are not made.

        Raises:
            StoreError: the member leaves when its time is over.
        """
        self._pending.clear()
        stream = self._stream
        if self.member is not None and stream is not None:
            self.member = None
            self._session.changed()
            await self._service.leave(stream, self._key)

    async def move(self, former: str) -> None:
        """The subscription's presence stream was another one."""
        if self.member is not None:
            member, self.member = self.member, None
            await self._service.leave(former, self._key)
            await self.join(*member)

    def release(self) -> None:
        """The connection went: the member stays until its time is over, or it comes back."""
        if self.member is not None and self._stream is not None:
            self._service.release(self._stream, self._key)

    # -- the client's list ------------------------------------------------------------------------------------------

    async def send_info(self, *, return_records: bool) -> None:
        """Answer who is there; always."""
        message = messages.presence_error()
        stream = self._stream
        if stream is not None:
            try:
                info, self._list = await self._service.lists.ask(stream, records=return_records)
            except Exception:
                logger.exception("The presence of %r could not be read.", stream)
            else:
                message = messages.presence_info(
                    info.total, list(info.records.items()) if info.records is not None else None
                )
                self._session.changed()
        self._send(message)

    async def take_over(self, left_at: float) -> None:
        """After a restore: take the member over, and make the client's list right by joins and leaves.

        Args:
            left_at: when the client left the session, by the session store's clock.
        """
        stream = self._stream
        if stream is None:
            return
        if self.member is not None:
            await self.join(*self.member)
        if self._former_key is not None and self._former_key != self._key:
            await self._service.leave(stream, self._former_key)
        self._former_key = None
        # What is announced from now on, the client hears.
        self._subscription.announce()
        if self._restored is None:
            return
        away = max(self._session.hub.engine.session_clock.now() - left_at, 0)
        gone = await self._service.store.aleft_within(stream, away + UNHEARD_TIME)
        info, self._list = await self._service.lists.ask(stream)
        if info.incarnation != self._restored:
            # Who left is not known any more: the client comes back once more, and starts this list afresh.
            self._list = None
            return self._session.restart()
        self._restored = None
        present = info.records or {}
        for id_ in gone:
            if id_ not in present:
                self._send(messages.presence_leave(id_))
        for id_, value in present.items():
            self._send(messages.presence_join(id_, value))

    def _send(self, message: str) -> None:
        self._session.outbox.push(messages.presence_event(self._subscription.identifier, message))

    # -- restore ----------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Return what a restore needs, as JSON values."""
        return {
            "member": list(self.member) if self.member is not None else None,
            "watching": self._list.incarnation if self._list is not None else self._restored,
            "key": self._former_key or self._key,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take what `record` returned in the session that was left."""
        self.member = tuple(data["member"]) if data["member"] is not None else None
        self._restored = data["watching"]
        # Nobody who was not a member has to leave. (Who joined just before a server died leaves when its time is over.)
        self._former_key = data["key"] if self.member is not None else None
