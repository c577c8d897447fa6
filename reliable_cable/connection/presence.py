"""The presence of one subscription: its member, and its client's list of all members."""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from reliable_cable.client_log import ClientLog
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.exceptions import StoreError
from reliable_cable.hub.presence import PresenceService
from reliable_cable.hub.rosters import OTHER_INCARNATION, Roster
from reliable_cable.protocol import messages
from reliable_cable.protocol.commands import PresenceClaim
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.reply import PresenceJoin, Reply

from .connection import Connection
from .handlers import REFUSALS, invoke_isolated
from .streams import SubscriptionStreams, choose_presence_stream


def member_key(sid: str, identifier: str) -> str:
    """Return the key of a subscription's member in the presence store."""
    return f"{sid}:{hashlib.blake2b(identifier.encode(), digest_size=8).hexdigest()}"


def blank_record(sid: str, identifier: str) -> dict[str, Any]:
    """Return the presence part of a session record for a subscription that never used presence."""
    return {"member": None, "watching": None, "key": member_key(sid, identifier)}


def recorded_presence_stream(record: Mapping[str, Any]) -> str:
    """Return the presence stream in the record of a subscription, or `""` if the record has no streams."""
    return choose_presence_stream((stream["name"], stream["presence"]) for stream in record["streams"]) or ""


class SubscriptionPresence:
    """The member that belongs to one subscription, and its client's list of all members.

    Args:
        subscription: the subscription to which this presence belongs.
    """

    __slots__ = (
        "_former_key",
        "_former_stream",
        "_key",
        "_pending_joins",
        "_restored_incarnation",
        "_roster",
        "_subscription",
        "claimed",
        "member",
    )

    def __init__(self, subscription: SubscriptionStreams) -> None:
        self._subscription = subscription
        #: The id and info of the member, or None while the subscription is not a member.
        self.member: tuple[str, Any] | None = None
        #: Whether the client itself requested the last join. If so, a restore calls `authorize_presence` again.
        self.claimed = False
        self._key = member_key(subscription.connection.sid, subscription.identifier)
        #: The joins to perform after the history has been sent.
        self._pending_joins: list[PresenceClaim | PresenceJoin] = []
        #: The member's key in the session that was restored, until the member has been taken over.
        self._former_key: str | None = None
        #: The presence stream of the member in the former session.
        self._former_stream = ""
        #: The roster of the client's list. None if the client has no list, or if its list is from a former session and
        #: has not been corrected yet.
        self._roster: Roster | None = None
        #: The incarnation of the client's list while `_roster` is None, for example until a restored list is corrected.
        self._restored_incarnation: str | None = None

    @property
    def _connection(self) -> Connection:
        return self._subscription.connection

    @property
    def _log(self) -> ClientLog:
        return self._connection.log

    @property
    def _service(self) -> PresenceService:
        return self._connection.hub.presence

    # -- the member ---------------------------------------------------------------------------------------------------

    async def apply(self, reply: Reply) -> None:
        """Perform the joins and leaves that a handler recorded."""
        for op in reply.presence:
            if isinstance(op, PresenceJoin):
                await self.join(op.id, op.info)
            else:
                await self.leave()

    async def authorizes(self, claim: PresenceClaim) -> bool:
        """Return whether the connection and the channel allow a join that the client requests.

        Raises:
            Exception: `authorize_presence` failed because of an outage.
        """
        if not self._connection.may_join():
            self._send(messages.presence_error())
            return False
        channel = self._subscription.channel
        authorize = getattr(channel, "authorize_presence", None)
        if authorize is None:
            self._log.warning("A join was refused: %s has no authorize_presence().", type(channel).__name__)
            return False
        try:
            return bool(await invoke_isolated(channel.connection, partial(authorize, claim.id, claim.info)))
        except REFUSALS as error:
            self._log.refusal("A join was refused: %s.authorize_presence() raised %r", type(channel).__name__, error)
            return False
        except Exception as error:
            if is_outage(error):
                raise
            self._log.exception("A join was refused: %s.authorize_presence() failed.", type(channel).__name__)
            return False

    async def join(self, id_: str, info: Any, *, claimed: bool = False) -> None:
        """Join the presence stream, or update the member's info.

        Args:
            id_: the id of the member.
            info: the info of the member.
            claimed: whether the client itself requested the join.
        """
        stream = self._subscription.presence_stream
        if self._connection.closed:
            return
        if stream is None:
            name = type(self._subscription.channel).__name__
            self._log.warning("A join was refused: the subscription to %s has no stream.", name)
            self._send(messages.presence_error())
            return
        before = self.member, self.claimed
        self.member, self.claimed = (id_, info), claimed
        former = self._former_key if stream == self._former_stream else None
        try:
            if not self._subscription.reserve(self.member):
                self._log.warning("A join was refused: its client's subscriptions and members need too many bytes.")
                self.member, self.claimed = before
                self._send(messages.presence_error())
                return
            await self._service.join(stream, self._key, id_, info, replaces=former or "")
        except Exception:
            self.member = None  # the member's info is not JSON, so no session record can contain it
            raise
        self._connection.changed()
        with contextlib.suppress(StoreError):  # after this error, the former member expires
            await self._leave_former()

    def join_later(self, joins: Iterable[PresenceClaim | PresenceJoin]) -> None:
        """Add pending joins. `join_pending` performs them."""
        self._pending_joins += joins

    async def join_pending(self) -> None:
        """Perform the joins that `join_later` added."""
        while self._pending_joins:
            join = self._pending_joins.pop(0)
            await self.join(join.id, join.info, claimed=isinstance(join, PresenceClaim))

    async def leave(self) -> None:
        """Leave the presence stream, and drop the pending joins.

        Raises:
            StoreError: the store could not be reached. The member leaves when it expires.
        """
        self._pending_joins.clear()
        stream = self._subscription.presence_stream
        if self.member is not None and stream is not None:
            self.member = None
            if self._subscription.reserved:  # 0 if the subscription has ended
                self._subscription.reserve(None)
            self._connection.changed()
            await self._service.leave(stream, self._key)
            await self._leave_former()

    async def _leave_former(self) -> None:
        """Remove the member of the former session, unless it has already been replaced or removed."""
        if self._former_key is not None:
            if self._former_key != self._key:
                await self._service.leave(self._former_stream, self._former_key)
            self._former_key = None

    async def move(self, former: str) -> None:
        """Move the member from the former presence stream to the current one.

        Args:
            former: the name of the former presence stream.
        """
        if self.member is not None:
            member, self.member = self.member, None
            await self._service.leave(former, self._key)
            await self.join(*member, claimed=self.claimed)

    def release(self) -> None:
        """Let the member expire, because the connection has ended. Before it expires, a restore can take it over."""
        # Later corrections may give the roster another incarnation. The client does not receive these corrections, so
        # its record keeps the present incarnation.
        self._restored_incarnation, self._roster = self._recorded_incarnation, None
        if self.member is not None and self._subscription.presence_stream is not None:
            self._service.release(self._subscription.presence_stream, self._key)

    async def leave_soon(self) -> None:
        """Let the member leave after `PRESENCE_GRACE`, because no client will restore the session."""
        if self._former_key is not None:  # the member of the former session has not been taken over
            await self._service.leave_soon(self._former_stream, self._former_key)
        elif self.member is not None and self._subscription.presence_stream is not None:
            await self._service.leave_soon(self._subscription.presence_stream, self._key)

    # -- the client's list --------------------------------------------------------------------------------------------

    async def send_info(self, *, return_records: bool) -> None:
        """Send the client the members, or only their number. If the store cannot be read, send an error message."""
        message = messages.presence_error()
        stream = self._subscription.presence_stream
        if stream is not None:
            await self._connection.outbox.drained()
            former = self._roster
            try:
                if not await self._record_list(stream):
                    return
                info, roster = await self._service.rosters.snapshot(stream, records=return_records)
            except Exception:
                self._roster = former
                self._log.exception(
                    "The presence of the stream %r could not be read. The client is sent an error.", stream
                )
            else:
                message = messages.presence_info(
                    info.total, list(info.records.items()) if info.records is not None else None
                )
                if not self._connection.closed:
                    self._roster = roster
                    self._connection.changed()
        self._send(message)

    async def _record_list(self, stream: str) -> bool:
        """Save the fact that the client has a list of members, before it gets the list. Return False if saving failed.

        If this server is killed, a restore from an older record would not correct the list.

        Raises:
            StoreError: the presence store could not be reached.
        """
        if self._recorded_incarnation is not None:
            return True
        roster = await self._service.rosters.open(stream)
        if self._connection.closed:
            return True
        self._roster = roster
        return await self._connection.save()

    async def take_over(self, left_at: float) -> None:
        """After a restore, take over the member of the former session, and correct the client's list.

        If the client itself requested the join, the member is not taken over, because the client joins again. If the
        client does not join again, because it had left and its `leave` was lost with the connection, the member
        expires.

        Args:
            left_at: the time at which the client left the former session, by the session store's clock.
        """
        if self.member is None:
            await self._leave_former()
        elif not self.claimed:
            await self.join(*self.member)
        stream = self._subscription.presence_stream
        if stream is None:
            return
        if self._restored_incarnation is not None:
            # The correction below includes earlier events. So the client need not receive them.
            await self._service.rosters.fence(stream)
        # From now on, the client receives presence events, even while the store is being read below.
        self._subscription.mark_confirmed()
        if self._restored_incarnation is None:
            return
        away = max(self._connection.hub.engine.session_clock.now() - left_at, 0)
        resumed = await self._service.rosters.resume(stream, self._restored_incarnation, away)
        if resumed is None:
            # The presence data were lost, so it is unknown which members have left. The record keeps the former
            # incarnation, so the next restore leaves this subscription out, and the client requests a new list.
            self._roster = None
            self._connection.close(DisconnectReason.SERVER_RESTART)
            return
        if self._connection.closed:
            return
        difference, self._roster = resumed
        self._restored_incarnation = None
        # All of these events must be sent before any later event, so nothing may wait for the socket between them.
        events = [
            *(self._event(messages.presence_leave(id_)) for id_ in difference.leaves),
            *(self._event(messages.presence_join(id_, info)) for id_, info in difference.joins.items()),
        ]
        if sum(map(len, events)) > self._connection.account.half:
            # The events would fill the outbox. So the client has to subscribe again, and then requests a new list.
            self._roster, self._restored_incarnation = None, OTHER_INCARNATION
            self._connection.close(DisconnectReason.SERVER_RESTART)
            return
        self._connection.outbox.push_all(events)

    def _send(self, message: str) -> None:
        self._connection.outbox.push(self._event(message))

    def _event(self, message: str) -> str:
        return messages.presence_event(self._subscription.identifier, message)

    # -- restore ------------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Return the presence part of the subscription's record, as JSON values."""
        member, claimed = self.member, self.claimed
        if self._pending_joins:
            last = self._pending_joins[-1]
            member, claimed = (last.id, last.info), isinstance(last, PresenceClaim)
        return {
            "member": list(member) if member is not None else None,
            **({"claimed": True} if claimed and member is not None else {}),
            "watching": self._recorded_incarnation,
            "key": self._former_key or self._key,
        }

    @property
    def _recorded_incarnation(self) -> str | None:
        return self._roster.recorded_incarnation if self._roster is not None else self._restored_incarnation

    def restore(self, record: Mapping[str, Any], member: tuple[str, Any] | None) -> None:
        """Restore the presence of the former session.

        Args:
            record: the record of the subscription.
            member: the id and info of the member that the subscription has after the restore, or None.
        """
        self.member = member
        self.claimed = member is not None and list(member) == record["member"] and bool(record.get("claimed"))
        self._restored_incarnation = record["watching"]
        # If the record has no member, there is no former member to replace. A member that joined just before its server
        # died may be missing from the record. Such a member leaves when it expires.
        self._former_key = record["key"] if record["member"] is not None else None
        self._former_stream = recorded_presence_stream(record)
