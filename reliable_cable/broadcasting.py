"""Broadcasting from anywhere: views, signals, tasks, the shell. Knows stores only, no hub and no connection."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from .concurrency.on_commit import (
    adefer_to_commit,
    call_after_commit,
    check_hooks,
    check_using,
    defer_to_commit,
    report_failure,
)
from .concurrency.threads import sync_only
from .exceptions import BroadcastError
from .protocol.positions import StreamPosition
from .protocol.recovery import StreamPage
from .stores.engine import get_engine
from .stores.streams.base import StreamStore
from .validation import BatchItem, Outgoing, check_stream_name, prepare_batch

logger = logging.getLogger("reliable_cable")


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A kept message of a stream.

    Args:
        position: where in the stream it is.
        data: the payload, decoded.
    """

    position: StreamPosition
    data: Any


@sync_only("abroadcast")
def broadcast(
    stream: str,
    data: Any,
    *,
    transient: bool = False,
    immediate: bool = False,
    to_others: bool = False,
    exclude_socket: str | None = None,
    idempotency_key: str | None = None,
    using: str | None = None,
) -> StreamPosition | None:
    """Send a message to everyone who is subscribed to a stream, now or after a reconnect.

    Inside transactions, the message is sent after all of them have committed. If one is rolled back, it is never sent.
    The payload is encoded at once, so later changes to `data` have no effect.

    Args:
        stream: the stream's name, at most 255 characters, none of them a control character.
        data: what `DjangoJSONEncoder` can encode; not what is falsy in JavaScript (None, False, 0, "").
        transient: for those who are connected right now: neither kept nor numbered.
        immediate: don't wait for the commit of the transaction that is open, if one is.
        to_others: not to the connection named by the current request's `X-Socket-ID`, if it names one.
        exclude_socket: not to the connection with this session id.
        idempotency_key: at most 255 characters. Repeating a broadcast with its key sends nothing and returns the first
            one's position, as long as the stream keeps that one.
        using: wait for the transaction on this database only, if one is open there.

    Returns:
        The position; None if the message is transient, or waits for a commit.

    Raises:
        AsyncContextError: an event loop runs in this thread; use `abroadcast`.
        InvalidStreamName: the name cannot be one.
        InvalidPayload: the payload cannot be sent.
        InvalidOption: the options contradict each other, or cannot be used with this stream.
        BroadcastError: nothing was sent.
        BroadcastUncertain: whether it was stored is unknown; repeating it with the same `idempotency_key` is safe.
    """
    items = prepare_batch(
        [(stream, data, {"idempotency_key": idempotency_key})],
        transient=transient,
        immediate=immediate,
        to_others=to_others,
        exclude_socket=exclude_socket,
        using=using,
    )
    return _Batch(items).send(immediate, using)[0]


async def abroadcast(
    stream: str,
    data: Any,
    *,
    transient: bool = False,
    immediate: bool = False,
    to_others: bool = False,
    exclude_socket: str | None = None,
    idempotency_key: str | None = None,
    using: str | None = None,
) -> StreamPosition | None:
    """Async twin of `broadcast`.

    It recognises transactions around `async_to_sync` and in a `ThreadSensitiveContext`, as in an async view. Elsewhere,
    for example in a consumer, the message is sent at once.
    """
    items = prepare_batch(
        [(stream, data, {"idempotency_key": idempotency_key})],
        transient=transient,
        immediate=immediate,
        to_others=to_others,
        exclude_socket=exclude_socket,
        using=using,
    )
    return (await _Batch(items).asend(immediate, using))[0]


@sync_only("abroadcast_batch")
def broadcast_batch(
    items: Iterable[BatchItem],
    *,
    transient: bool = False,
    immediate: bool = False,
    to_others: bool = False,
    exclude_socket: str | None = None,
    using: str | None = None,
) -> list[StreamPosition | None]:
    """Broadcast several messages: those that are kept all or none and in this order, then the others in theirs.

    The options are those of `broadcast`.

    Args:
        items: (stream, data) pairs; or triples with a dict of the options that this one item has of its own,
            `{"transient": True}`: `transient`, `exclude_socket`, `idempotency_key`.

    Returns:
        What `broadcast` returns, for each.

    Raises:
        CableError: as for `broadcast`; nothing was sent.
    """
    batch = prepare_batch(
        items,
        transient=transient,
        immediate=immediate,
        to_others=to_others,
        exclude_socket=exclude_socket,
        using=using,
    )
    return _Batch(batch).send(immediate, using)


async def abroadcast_batch(
    items: Iterable[BatchItem],
    *,
    transient: bool = False,
    immediate: bool = False,
    to_others: bool = False,
    exclude_socket: str | None = None,
    using: str | None = None,
) -> list[StreamPosition | None]:
    """Async twin of `broadcast_batch`. It recognises the same transactions as `abroadcast`."""
    batch = prepare_batch(
        items,
        transient=transient,
        immediate=immediate,
        to_others=to_others,
        exclude_socket=exclude_socket,
        using=using,
    )
    return await _Batch(batch).asend(immediate, using)


@sync_only("aposition")
def position(stream: str) -> StreamPosition:
    """Return the position of a stream's newest message: `("", 0)` if it never had any.

    Raises:
        AsyncContextError: an event loop runs in this thread; use `aposition`.
        InvalidStreamName: the name cannot be one.
        StoreError: the store could not be read.
    """
    return get_engine().streams.position(check_stream_name(stream))


async def aposition(stream: str) -> StreamPosition:
    """Async twin of `position`."""
    return await get_engine().streams.aposition(check_stream_name(stream))


@sync_only("ahistory")
def history(stream: str, *, limit: int = 100, after: int = 0) -> list[HistoryEntry]:
    """Return a stream's kept messages, oldest first.

    Args:
        stream: its name.
        limit: the greatest number of messages to return.
        after: return messages with greater offsets only.

    Raises:
        AsyncContextError: an event loop runs in this thread; use `ahistory`.
        InvalidStreamName: the name cannot be one.
        StoreError: the store could not be read.
    """
    return _decoded(get_engine().streams.read(check_stream_name(stream), after=after, limit=limit))


async def ahistory(stream: str, *, limit: int = 100, after: int = 0) -> list[HistoryEntry]:
    """Async twin of `history`."""
    return _decoded(await get_engine().streams.aread(check_stream_name(stream), after=after, limit=limit))


def _decoded(page: StreamPage) -> list[HistoryEntry]:
    return [HistoryEntry(StreamPosition(page.epoch, entry.offset), json.loads(entry.data)) for entry in page.entries]


@sync_only("aforget")
def forget(stream: str, *, using: str | None = None) -> None:
    """Delete a stream's history and begin a new epoch: its subscribers are told that they lost their place.

    Inside transactions this waits until all of them have committed, as broadcasts do.

    Args:
        stream: its name.
        using: wait for the transaction on this database only, if one is open there.

    Raises:
        AsyncContextError: an event loop runs in this thread; use `aforget`.
        InvalidStreamName: the name cannot be one.
        InvalidOption: there is no database `using`.
        BroadcastError: autocommit is off on a database, so nothing can wait for its commit.
        StoreError: the store could not be changed.
    """
    check_using(using)
    store = get_engine().streams
    if not defer_to_commit(partial(_forget_on_commit, store, check_stream_name(stream)), using):
        store.forget(stream)


async def aforget(stream: str, *, using: str | None = None) -> None:
    """Async twin of `forget`. It recognises the same transactions as `abroadcast`."""
    check_using(using)
    store = get_engine().streams
    if not await adefer_to_commit(partial(_forget_on_commit, store, check_stream_name(stream)), using):
        await store.aforget(stream)


def _forget_on_commit(store: StreamStore, stream: str, databases: Sequence[str]) -> None:
    check_hooks(databases, "call it after the commit")
    call_after_commit(partial(store.forget, stream), databases, failed=partial(report_failure, type(store), [stream]))


class _Batch:
    """Broadcasts that are sent together: first those that the streams keep, then the others."""

    def __init__(self, items: Sequence[Outgoing]) -> None:
        self._store = get_engine().streams
        self._items = items
        self._kept = [(item.stream, item.message) for item in items if item.kept]
        self._others = [(item.stream, item.message) for item in items if not item.kept]

    def send(self, immediate: bool, using: str | None) -> list[StreamPosition | None]:
        """Send the messages now or after the commit. Return their positions."""
        if not immediate and defer_to_commit(self._send_on_commit, using):
            return [None] * len(self._items)
        positions = self._store.append(self._kept) if self._kept else []
        with self._kept_is_sent():
            self._publish_others()
        return self._all_positions(positions)

    async def asend(self, immediate: bool, using: str | None) -> list[StreamPosition | None]:
        """Async twin of `send`."""
        if not immediate and await adefer_to_commit(self._send_on_commit, using):
            return [None] * len(self._items)
        positions = await self._store.aappend(self._kept) if self._kept else []
        with self._kept_is_sent():
            for stream, message in self._others:
                await self._store.apublish_transient(stream, message)
        return self._all_positions(positions)

    def _send_on_commit(self, databases: Sequence[str]) -> None:
        if self._others or len(databases) > 1:
            check_hooks(databases)
        if len(databases) == 1 and self._kept:
            self._store.append_on_commit(self._kept, using=databases[0])
        elif self._kept:
            call_after_commit(partial(self._store.append, self._kept), databases, failed=self._failure(self._kept))
        if self._others:
            call_after_commit(self._publish_others, databases, failed=self._failure(self._others))

    def _failure(self, items: Sequence[tuple[str, Any]]) -> partial[None]:
        return partial(report_failure, type(self._store), [stream for stream, _ in items])

    def _publish_others(self) -> None:
        for stream, message in self._others:
            self._store.publish_transient(stream, message)

    @contextmanager
    def _kept_is_sent(self) -> Iterator[None]:
        """Log a `BroadcastError` if messages were stored: callers that get an error would send them again."""
        try:
            yield
        except BroadcastError:
            if not self._kept:
                raise
            logger.warning("Transient messages of a batch were not sent.", exc_info=True)

    def _all_positions(self, kept: Iterable[StreamPosition]) -> list[StreamPosition | None]:
        positions = iter(kept)
        return [next(positions) if item.kept else None for item in self._items]
