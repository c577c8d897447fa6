"""A subscription: one identifier of one connection, with its channel, its streams and its presence."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reliable_cable.hub.subscriber import SubscriberState
from reliable_cable.protocol.commands import PresenceClaim
from reliable_cable.protocol.constants import MessageType
from reliable_cable.protocol.payloads import is_falsy
from reliable_cable.protocol.positions import UNKNOWN_POSITION, HistoryRequest, PagePosition, StreamPosition
from reliable_cable.reply import PresenceJoin, Reply, StreamStart
from reliable_cable.stores.streams.base import Message

from .presence import SubscriptionPresence, blank_record
from .replay import Replay
from .started import Started
from .streams import SubscribedStream, SubscriptionStreams


@dataclass(slots=True, eq=False, repr=False)
class Subscription(SubscriptionStreams):
    """The channel object, the streams and the presence of one subscription."""

    _presence: SubscriptionPresence | None = None
    #: Handles the requests for a replay. None means that there are no requests.
    _replay: Replay | None = None
    #: The timer that closes the connection if the client does not request the history of a restored subscription.
    deadline: asyncio.TimerHandle | None = None
    #: Whether a `subscribe` was repeated after the last confirmation.
    repeated: bool = False
    #: The streams and the member from the last run of `subscribed`, or None if the restored record lacks them.
    started: Started | None = None

    @property
    def presence(self) -> SubscriptionPresence:
        """The presence of the subscription. The object is created when it is first used."""
        if self._presence is None:
            self._presence = SubscriptionPresence(self)
        return self._presence

    @property
    def member(self) -> tuple[str, Any] | None:
        """The id and info of the subscription's member, or None if it has not joined presence."""
        return None if self._presence is None else self._presence.member

    # -- streams ------------------------------------------------------------------------------------------------------

    async def apply_streams(
        self, reply: Reply, request: HistoryRequest | None = None, *, until: float | None = None
    ) -> None:
        """Start and stop the streams in the reply of a handler. New streams do not go live before `catch_up`.

        Args:
            reply: the reply of the handler.
            request: the history request of the client, which may name stream ids.
            until: the time, by the clock of the event loop, at which to give up opening a stream.

        Raises:
            StoreError: a stream could not be opened. The streams before it are open.
        """
        if not reply.streams:
            return
        presence_stream = self.presence_stream
        started = dict.fromkeys(operation.name for operation in reply.streams if isinstance(operation, StreamStart))
        with self.connection.hub.opening(started):
            for operation in reply.streams:
                if isinstance(operation, StreamStart):
                    stream_id = self.connection.stream_ids.claim(operation.name, self.identifier, request)
                    await self._start(operation, stream_id, until)
                else:
                    for name in list(self.streams) if operation.name is None else [operation.name]:
                        self._stop(name)
        if presence_stream is not None and self.presence_stream != presence_stream:
            await self.presence.move(presence_stream)
        self._mark_presence()

    async def _start(self, start: StreamStart, stream_id: str | None, until: float | None) -> None:
        known = self.streams.get(start.name)
        if known is not None:
            known.start = start
            return
        subscribed = SubscribedStream(
            self, self.connection.outbox, self.identifier, stream_id, self.connection.sids, start=start
        )
        self.streams[start.name] = subscribed
        hub = self.connection.hub
        try:
            subscribed.stream = await hub.subscribe(start.name, subscribed, until=until)
        except BaseException:
            self._stop(start.name)
            raise
        if self.connection.closed:
            # The connection ended while the stream was being opened. The subscriber can be closed only now.
            hub.unsubscribe(subscribed.stream, subscribed)
        subscribed.confirmed = self.known
        subscribed.first = subscribed.cursor
        subscribed.has_snapshots = self.channel.has_snapshots() and hub.settings.policy(start.name).history_size > 0
        subscribed.needs_snapshot = subscribed.has_snapshots
        if start.after is not None:
            self._start_after_page(subscribed, start.after)
        elif start.since is not None and stream_id is not None and hub.settings.policy(start.name).history_size:
            subscribed.page_since = start.since

    def _start_after_page(self, subscribed: SubscribedStream, page: PagePosition) -> None:
        name = subscribed.start.name
        if subscribed.stream_id is None:
            self.connection.log.warning(
                "A web page passed a position in the stream %r, but its client uses the base protocol, which has no "
                'positions. Give the client the option protocol: "actioncable-v1-ext-json".',
                name,
            )
        elif self.connection.hub.settings.policy(name).history_size:
            if page == UNKNOWN_POSITION:
                self.connection.log.warning("A web page passed a position that does not belong to the stream %r.", name)
            subscribed.start_after_page(page)

    def _stop(self, name: str) -> None:
        subscribed = self.streams.pop(name, None)
        if subscribed is not None:
            self._unsubscribe(subscribed)

    def _unsubscribe(self, subscribed: SubscribedStream) -> None:
        if subscribed.state not in (SubscriberState.OPENING, SubscriberState.CLOSED):
            self.connection.hub.unsubscribe(subscribed.stream, subscribed)
        self.connection.stream_ids.release(subscribed.start.name, self.identifier)

    def _mark_presence(self) -> None:
        presence_stream = self.presence_stream
        for name, subscribed in self.streams.items():
            subscribed.presence = self.connection.extended and name == presence_stream

    # -- delivery -----------------------------------------------------------------------------------------------------

    def confirm(self) -> None:
        """Send `confirm_subscription`. From now on, the client knows the subscription."""
        self.confirmed = True
        self.acknowledge(MessageType.CONFIRM_SUBSCRIPTION)
        self.mark_confirmed()

    def repeat(self) -> None:
        """Handle a repeated `subscribe`: ignore the first repeat, confirm the second one, and so on.

        `@anycable/core` unsubscribes at a second confirmation, and repeats a `subscribe` at most once.
        `@rails/actioncable` repeats the `subscribe` of a second subscription object until it is confirmed. See
        Protocol: Subscriptions.
        """
        self.repeated = not self.repeated
        if not self.repeated:
            self.acknowledge(MessageType.CONFIRM_SUBSCRIPTION)

    def catch_up(
        self, request: HistoryRequest | None = None, joins: Sequence[PresenceClaim | PresenceJoin] = ()
    ) -> None:
        """Send the missing messages, acknowledge the history request, join presence, then go live.

        Args:
            request: a history request of the client, or None if it has made none.
            joins: the joins to perform before the streams go live.
        """
        if request is not None:
            self.cancel_deadline()
        elif self.deadline is not None:
            return  # the subscription was restored, and will catch up when the client requests its history
        if joins:
            self.presence.join_later(joins)
        if self._replay is None:
            if request is None and not joins and not any(each.needs_replay for each in self.streams.values()):
                for subscribed in self.streams.values():
                    subscribed.resume()
                return
            self._replay = Replay(self, self._before_live, self._replayed)
        self._replay.add(request)

    async def _before_live(self) -> None:
        """Take over the member of the session that was restored, if any, and perform the pending joins."""
        if self.left_at is not None:
            if self._presence is not None:
                await self._presence.take_over(self.left_at)
            self.mark_confirmed()
            self.left_at = None
        if self._presence is not None:
            await self._presence.join_pending()

    def _replayed(self) -> None:
        self._replay = None

    async def caught_up(self) -> None:
        """Wait until there are no requests for a replay."""
        while self._replay is not None:
            await self._replay.finished()

    async def whisper(self, data: str) -> None:
        """Send a whisper of the client to the other subscribers of `whisper_stream`, if there is such a stream."""
        stream = self.whisper_stream
        # Clients drop falsy messages.
        if stream is not None and not is_falsy(data):
            message = Message(data, exclude=self.connection.sid)
            await self.connection.hub.engine.streams.awhisper(stream, message)

    def fell_behind(self) -> None:
        """Catch up from the store. Call this when a live subscriber was not sent a message."""
        self.catch_up()

    def messages_lost(self) -> None:
        """Send snapshots of all streams that have them. If a stream has none, tell the client of the loss."""
        snapshots = [each for each in self.streams.values() if each.has_snapshots]
        for subscribed in snapshots:
            subscribed.suspend()
            subscribed.needs_snapshot = True
        if len(snapshots) < len(self.streams):
            self.report_loss()
        if snapshots:
            self.catch_up()

    def cancel_deadline(self) -> None:
        """Stop waiting for the history request of a restored subscription."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    # -- the end ------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Close all streams and stop the replay. The member, if any, stays in presence."""
        self.cancel_deadline()
        if self._replay is not None:
            # A task that is cancelled before its first step does not call `_replayed`.
            self._replay.cancel()
            self._replay = None
        for subscribed in self.streams.values():
            self._unsubscribe(subscribed)
        self.connection.account.reserve(-self.reserved)
        self.reserved = 0

    def release(self) -> None:
        """End the subscription, because its connection has ended.

        The member leaves presence unless the client returns in time.
        """
        self.end()
        if self._presence is not None:
            self._presence.release()

    async def leave_soon(self) -> None:
        """Let the member, if any, leave after `PRESENCE_GRACE`, because no client will restore the session."""
        if self._presence is not None:
            await self._presence.leave_soon()

    def break_cycles(self) -> None:
        """Break reference cycles, so that the subscription is freed without a garbage collection."""
        self.streams = {}
        self._presence = None

    # -- restore ------------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """Return the subscription's part of the session record, as JSON values."""
        presence = self._presence.record() if self._presence else blank_record(self.connection.sid, self.identifier)
        return {
            "identifier": self.identifier,
            "state": self.channel.dump_state(),
            "streams": [
                {
                    "name": name,
                    "id": subscribed.stream_id,
                    "first": subscribed.recorded_start,
                    "whisper": subscribed.start.whisper,
                    "presence": subscribed.start.presence,
                }
                for name, subscribed in self.streams.items()
                if subscribed.state is not SubscriberState.OPENING
            ],
            "subscribed": self.started.dump() if self.started is not None else None,
            "left_at": self.left_at,
            "authorized": self.authorized,
            **presence,
        }

    async def restore(
        self,
        record: Mapping[str, Any],
        streams: Sequence[Mapping[str, Any]],
        member: tuple[str, Any] | None,
        left_at: float,
        *,
        until: float | None = None,
    ) -> None:
        """Start the streams of a restored subscription. They go live when the client has requested the history.

        Args:
            record: the record of the subscription in the former session (see the method `record`).
            streams: the streams to start, in the form of `streams` in the record. Streams without an `id` are new.
            member: the id and info of the member that the subscription has after the restore, or None.
            left_at: the time at which the client left, by the session store's clock.
            until: the time, by the clock of the event loop, at which to give up opening a stream.

        Raises:
            StoreError: a stream could not be opened.
        """
        for item in streams:
            name, stream_id = item["name"], item.get("id")
            if stream_id is None:
                stream_id = self.connection.stream_ids.claim(name, self.identifier, None)
            else:
                self.connection.stream_ids.take(name, self.identifier, stream_id)
            after = None if "first" in item else item["after"]
            await self._start(StreamStart(name, item["whisper"], item["presence"], after), stream_id, until)
            if "first" in item:
                self.streams[name].first = self.streams[name].resolve(StreamPosition(*item["first"]))
        self._mark_presence()
        if member is not None or record["member"] is not None or record["watching"] is not None:
            self.presence.restore(record, member)
        self.left_at = left_at
        self.recorded_authorized = record.get("authorized", 0.0)
