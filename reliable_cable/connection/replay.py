"""Sends the entries that a subscription has missed, and then marks its streams live.

See Architecture: Delivery to a subscriber, and Protocol: History.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from reliable_cable.concurrency.retrying import RETRY_DELAY, retry
from reliable_cable.exceptions import StoreError
from reliable_cable.hub.stream import LOST, HubStream
from reliable_cable.hub.subscriber import SubscriberState
from reliable_cable.protocol.constants import DisconnectReason, MessageType
from reliable_cable.protocol.positions import HistoryRequest, StreamPosition
from reliable_cable.protocol.recovery import StreamPage, recoverable, requested_position

from .snapshots import read_snapshot
from .stream_ids import stream_alias
from .streams import SubscribedStream, SubscriptionStreams

T = TypeVar("T")

#: How long, in seconds, to wait before each attempt to read a snapshot.
SNAPSHOT_DELAYS: Final = (0.0, 0.2, 0.5, 1.0, 2.0)


class Replay:
    """Handles the replay requests of one subscription, one after another, in a task that ends after the last request.

    A request is a `HistoryRequest` of the client, or None if the server itself needs a replay, for example to start a
    stream, to join presence, or to catch up after the client has read too slowly. A stream that starts at the position
    of a web page is handled as if the client had requested the messages after this position. After each request, all
    streams are live. At most one request is pending. Further requests are merged into it, and each of them gets the
    same answer.

    Args:
        subscription: the subscription whose streams are replayed.
        before_live: an async function, called after the history has been sent and before the streams go live.
        ended: a function that is called when all requests have been handled, or when one has failed.
    """

    __slots__ = ("_answers", "_before_live", "_ended", "_held", "_pending", "_request", "_subscription", "_task")

    def __init__(
        self,
        subscription: SubscriptionStreams,
        before_live: Callable[[], Awaitable[None]],
        ended: Callable[[], None],
    ) -> None:
        self._subscription = subscription
        self._before_live = before_live
        self._ended = ended
        #: Whether a request is pending.
        self._pending = False
        #: The pending requests of the client, merged into one, or None if the client has made none.
        self._request: HistoryRequest | None = None
        #: The number of pending requests of the client, each of which is answered.
        self._answers = 0
        #: The size, in bytes, of the pages of entries that are held until they are sent.
        self._held = 0
        self._task = subscription.connection.hub.tasks.spawn(self._run())

    def add(self, request: HistoryRequest | None) -> None:
        """Add a request, which is handled after the current one."""
        self._pending = True
        if request is None:
            return  # a pending request of the client, if any, also causes a replay
        self._suspend()
        wanted = self._without_other_streams(request)
        self._request = wanted if self._request is None else self._request.merged(wanted)
        self._answers += 1

    def _without_other_streams(self, request: HistoryRequest) -> HistoryRequest:
        """Return a request without the positions in streams of other subscriptions."""
        subscription = self._subscription
        names = {stream_alias(name, subscription.identifier) for name in subscription.streams}
        names.update(subscription.streams, (each.stream_id or "" for each in subscription.streams.values()))
        streams = {name: request.streams[name] for name in names if name in request.streams}
        return HistoryRequest(request.since, streams)

    async def finished(self) -> None:
        """Wait until all requests have been handled."""
        await asyncio.wait([self._task])

    def cancel(self) -> None:
        """Stop the task, and drop the pending requests."""
        self._task.cancel()
        self._release_pages()

    async def _run(self) -> None:
        subscription = self._subscription
        try:
            while self._pending:
                self._pending = False
                request, self._request = self._request, None
                answers, self._answers = self._answers, 0
                await self._handle(request, answers)
        except Exception:
            # If the streams went live now, the client would miss messages. So the client has to reconnect.
            subscription.connection.log.exception(
                "The history of the subscription %r could not be sent.", subscription.identifier
            )
            subscription.connection.close(DisconnectReason.SERVER_RESTART)
        finally:
            self._ended()

    async def _handle(self, request: HistoryRequest | None, answers: int) -> None:
        subscription = self._subscription
        if request is None and any(each.begins_elsewhere for each in subscription.streams.values()):
            request = HistoryRequest()
        if request is not None:
            self._suspend()  # a request before this one may have marked the streams live
            await subscription.connection.hub.pacer.wait()
            await self._send_history(request, answers)
        await self._before_live()
        # Let the event loop deliver the client's own join, which must arrive before live messages.
        await asyncio.sleep(0)
        await self._go_live()
        subscription.connection.changed()

    def _suspend(self) -> None:
        for subscribed in self._subscription.streams.values():
            subscribed.suspend()

    # -- a request for history ----------------------------------------------------------------------------------------

    async def _send_history(self, request: HistoryRequest, answers: int) -> None:
        """Send the entries after the positions that the web page passed or the client named.

        The answer to each request tells the client whether the entries are complete. If the client made no request, it
        is told nothing unless entries are missing.
        """
        subscription = self._subscription
        streams = self._streams_with_history()
        complete = False
        try:
            pages = await self._retry(partial(self._find_starts, request))
            subscription.restorable = True
            if pages is not None:
                complete = await self._send_pages(streams, pages)
        except Exception:
            subscription.connection.log.exception(
                "The history of the subscription %r could not be read.", subscription.identifier
            )
        finally:
            self._release_pages()
        if not complete:
            for subscribed in subscription.streams.values():
                timed = self._since(subscribed, request) is not None
                if timed and self._named_position(subscribed, request) is None:
                    subscribed.first = LOST
                subscribed.start_at_end()
        subscription.restorable = True
        for _ in range(answers if complete else max(answers, 1)):
            await subscription.connection.outbox.drained()
            if complete:
                subscription.acknowledge(MessageType.CONFIRM_HISTORY)
            elif subscription.connection.extended:
                subscription.reject_history()

    def _streams_with_history(self) -> Sequence[SubscribedStream]:
        policy = self._subscription.connection.hub.settings.policy
        return [
            subscribed
            for name, subscribed in self._subscription.streams.items()
            if policy(name).history_size > 0 and subscribed.state is not SubscriberState.OPENING
        ]

    async def _find_starts(self, request: HistoryRequest) -> dict[SubscribedStream, StreamPage] | None:
        """Set the cursor of each stream to the client's position.

        Returns:
            The first page of entries of each stream, except pages that are too large to be held. None if the store
            lacks entries after one of the positions.
        """
        self._release_pages()
        pages: dict[SubscribedStream, StreamPage] = {}
        starts: dict[SubscribedStream, StreamPosition] = {}
        for subscribed in self._streams_with_history():
            position, since = self._named_position(subscribed, request), self._since(subscribed, request)
            if position is None and since is None:
                continue
            if position is None and subscribed.has_snapshots:
                subscribed.needs_snapshot = True
                continue
            found = await self._first_page(subscribed, position, since)
            if found is None and subscribed.has_snapshots:
                subscribed.needs_snapshot = True
                continue
            if found is None:
                return None
            starts[subscribed], page = found
            if self._hold(page):
                pages[subscribed] = page
        for subscribed, position in starts.items():
            subscribed.start_at(position)
        return pages

    def _hold(self, page: StreamPage) -> bool:
        """Hold a page of entries until it is sent. Return False if it is too large, so that it must be read again.

        Without this limit, a client with many subscriptions could make the server hold a page for each of them.
        """
        outbox = self._subscription.connection.outbox
        if not outbox.can_hold_page(page.size):
            return False
        outbox.hold(page.size)
        self._held += page.size
        return True

    def _release_pages(self) -> None:
        self._subscription.connection.outbox.hold(-self._held)
        self._held = 0

    def _named_position(self, subscribed: SubscribedStream, request: HistoryRequest) -> StreamPosition | None:
        """Return the position that the client named for a stream, or else that of its web page or session, if any."""
        name = subscribed.stream.name
        if self._subscription.left_at is None:
            position = requested_position(request, (stream_alias(name, self._subscription.identifier), name))
            return subscribed.page if position is None else subscribed.resolve(position)
        # In a restored session, the position of another stream id belongs to another subscription.
        position = requested_position(request, (subscribed.stream_id or name,))
        # If the client names no position, it has received no snapshot. The result None makes it receive a snapshot.
        return position if position is not None or subscribed.has_snapshots else subscribed.first

    def _since(self, subscribed: SubscribedStream, request: HistoryRequest) -> float | None:
        """Return the time from which to replay a stream if the client named no position in it.

        A time that the web page passed takes precedence over the time in the history request. None means that neither
        gives a time.
        """
        return request.since if subscribed.page_since is None else subscribed.page_since

    async def _first_page(
        self, subscribed: SubscribedStream, position: StreamPosition | None, since: float | None
    ) -> tuple[StreamPosition, StreamPage] | None:
        """Read the first page of entries after a position, or after a time if there is no position.

        Returns:
            The position and the page. None if entries after the position are missing.
        """
        hub, stream = self._subscription.connection.hub, subscribed.stream
        known = stream.position
        if position is not None:
            # If the position is that of a web page, the client has just loaded the web page. So, like a follower, it is
            # also sent the entries beyond the history size that are at most `YOUNG_TIME` seconds old.
            page = await self._read(stream, position, following=position is subscribed.page)
        else:
            cursor = subscribed.cursor
            offset = await hub.engine.streams.aoffset_since(stream.name, self._server_time(since or 0.0))
            if offset is None:
                return None
            if cursor.epoch in ("", known.epoch):
                # The entries after the cursor have not been sent. They are needed even if they are older than `since`.
                offset = min(offset, cursor.offset)
            page = await self._read(stream, StreamPosition("", offset))
            if known.epoch not in ("", page.epoch) or cursor.epoch not in ("", page.epoch):
                # The epoch has changed, perhaps between two attempts. The offset may belong to the former epoch, and
                # the page lacks the messages of that epoch, even if the offset is 0.
                return None
            position = StreamPosition(page.epoch, offset)
        return (position, page) if recoverable(position, page) else None

    async def _read(self, stream: HubStream, position: StreamPosition, *, following: bool = False) -> StreamPage:
        """Read the first page of entries after a position. If its epoch is not that of the hub, request a repair."""
        hub = self._subscription.connection.hub
        page = await hub.history.read(stream.name, position, stream.position, following=following)
        if page.epoch != stream.position.epoch:
            # The repair stops the hub from delivering late announcements of an epoch that has ended.
            hub.repairs.request(stream)
        return page

    def _server_time(self, since: float) -> float:
        """Return a client's `since`. If it is later than the store's time, return that time minus one ping interval."""
        connection = self._subscription.connection
        now = connection.hub.engine.stream_clock.now()
        return since if since <= now else now - connection.ping_interval

    # -- sending ------------------------------------------------------------------------------------------------------

    async def _send_pages(self, streams: Sequence[SubscribedStream], pages: dict[SubscribedStream, StreamPage]) -> bool:
        """Send pages of entries until all streams are caught up. Return False if entries were missing."""
        complete = True
        for subscribed in streams:
            if subscribed.needs_snapshot:
                complete = await self._send_snapshot(subscribed) and complete
        while behind := [subscribed for subscribed in streams if subscribed.is_behind]:
            for subscribed in behind:
                sent = await self._send_page(subscribed, pages.pop(subscribed, None))
                complete = (sent or await self._send_snapshot(subscribed)) and complete
        return complete

    async def _go_live(self) -> None:
        """Send entries until no stream lacks any, and then mark all streams live at the same time."""
        streams = self._subscription.streams
        while behind := [subscribed for subscribed in streams.values() if subscribed.is_behind]:
            for subscribed in behind:
                if not await self._send_page(subscribed) and not await self._send_snapshot(subscribed):
                    self._subscription.report_loss()
        for subscribed in streams.values():
            subscribed.resume()

    def _send_page(self, subscribed: SubscribedStream, page: StreamPage | None = None) -> Awaitable[bool]:
        catch_up = self._subscription.connection.hub.catch_up
        return self._retry(partial(catch_up.send_page, subscribed.stream, subscribed, page))

    async def _send_snapshot(self, subscribed: SubscribedStream) -> bool:
        """Send the channel's snapshot of a stream, and move the cursor to the snapshot's position.

        If the store lacks entries after the snapshot, the snapshot is read again (see `SNAPSHOT_DELAYS`).

        Returns:
            False if there is no snapshot, or if the store lacks entries after every snapshot that was read.
        """
        if not subscribed.has_snapshots:
            return False
        problem = f"A snapshot of {self._subscription.identifier} could not be read"
        for delay in SNAPSHOT_DELAYS:
            await asyncio.sleep(delay)
            if subscribed.state is not SubscriberState.CATCHING_UP:
                return True
            attempt = partial(self._try_snapshot, subscribed)
            sent = await retry(attempt, problem, delay=RETRY_DELAY, errors=StoreError)
            if sent is not None:
                return sent
        return False

    async def _try_snapshot(self, subscribed: SubscribedStream) -> bool | None:
        """Read and send a snapshot. Return False if there is none, and None if the store lacks entries after it.

        Snapshots may be large. So a connection reads one at a time, and only while its socket accepts data.

        Raises:
            StoreError: the database or the store could not be reached.
        """
        stream, outbox = subscribed.stream, subscribed.outbox
        async with outbox.reading:
            await outbox.drained()
            if subscribed.state is not SubscriberState.CATCHING_UP:
                return True
            snapshot = await read_snapshot(self._subscription.channel, stream.name)
            if snapshot is None:
                return False
            position, text = snapshot
            if not recoverable(position, await self._read(stream, position, following=True)):
                return None
            await outbox.drained()
            if subscribed.state is SubscriberState.CATCHING_UP:
                group = stream.group(subscribed)
                known = position.epoch and position.offset
                encoded = group.encode(position.epoch, position.offset, text) if known else None
                outbox.push(encoded or group.encode_transient(text))
                subscribed.start_at(position)
                del snapshot, text, encoded
                await outbox.drained()
            return True

    def _retry(self, read: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """Repeat a read until the store answers. Messages that were announced during the retries are read later."""
        problem = f"A stream of the subscription {self._subscription.identifier} could not be read"
        return retry(read, problem, delay=RETRY_DELAY, errors=StoreError)
