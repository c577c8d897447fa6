"""Functions that broadcast messages from any code, such as views, signal receivers, tasks and the shell.

The functions send nothing to clients themselves. They write the messages to the stores, from which the hubs of the
server processes receive them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from .concurrency import on_commit
from .concurrency.threads import sync_only
from .exceptions import BroadcastError
from .logs import logger
from .protocol.positions import PagePosition, StreamPosition, beginning_of
from .protocol.recovery import StreamPage
from .stores.engine import get_engine, require_own_servers
from .stores.streams.base import NOWHERE, StreamStore
from .stores.streams.failures import report_failure
from .stores.streams.sharding import require_one_shard, split_by_shard
from .validation import BatchItem, BatchOptions, Outgoing, aprepare_batch, prepare_batch, resolve_stream

#: Functions that are called with the messages of each batch after it was sent. Only `reliable_cable.testing` uses this.
observers: list[Callable[[Sequence[Outgoing]], object]] = []


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A message in the history of a stream.

    Args:
        position: the message's position in the stream.
        data: the decoded payload.
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
    """Send a message to all subscribers of a stream. Disconnected clients receive it when they reconnect.

    Inside transactions, the message is sent after all of them have committed. If one of them is rolled back, the
    message is not sent. The payload is encoded immediately, so later changes to `data` have no effect.

    Args:
        stream: the stream's name. It has 1 to 255 characters, and no control characters.
        data: any value that `DjangoJSONEncoder` can encode, unless it is falsy in JavaScript (None, False, 0, "").
        transient: send only to clients that are connected now. The message is neither stored nor numbered.
        immediate: send now, even if a transaction is open.
        to_others: exclude the connection whose session id is in the header `X-Socket-ID` of the current request. In an
            action, exclude the client that called the action.
        exclude_socket: exclude the connection with this session id.
        idempotency_key: a string of 1 to 255 characters. If the stream still keeps a message with the same key, nothing
            is sent, and the position of that message is returned.
        using: wait only for a transaction on the database with this alias.

    Returns:
        The position of the message; None if it is transient, will be sent after a commit, or belongs to a stream
        without a history, or if the engine numbers no messages (`BROADCAST_ADAPTER`).

    Raises:
        AsyncContextError: an event loop runs in this thread. Use `abroadcast`.
        InvalidStreamName: the name is not valid.
        InvalidPayload: the payload cannot be sent.
        InvalidOption: the options contradict each other, or cannot be used with this stream.
        BroadcastError: the broadcast was refused or could not be stored, and nothing was sent. This is also the base
            class of the three `Invalid…` errors.
        BroadcastUncertain: a `BroadcastError` after which the message may have been stored. The broadcast can safely be
            repeated with the same `idempotency_key`.
    """
    options = BatchOptions(transient, immediate, to_others, exclude_socket, using)
    return Batch.of_one(stream, data, idempotency_key, options).send()[0]


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
    """Async version of `broadcast`.

    It waits for a transaction in which `async_to_sync` was called, and for transactions in a `ThreadSensitiveContext`,
    such as those of an async view. In other async code, such as a consumer, it sends the message immediately.
    """
    options = BatchOptions(transient, immediate, to_others, exclude_socket, using)
    return (await Batch.of_one(stream, data, idempotency_key, options).asend())[0]


@sync_only("abroadcast_batch")
def broadcast_batch(
    items: Iterable[BatchItem],
    *,
    transient: bool = False,
    immediate: bool = False,
    to_others: bool = False,
    exclude_socket: str | None = None,
    using: str | None = None,
    atomic: bool = True,
) -> list[StreamPosition | None]:
    """Broadcast several messages.

    First, the messages are stored, in the given order, except for transient messages and messages of streams without a
    history. Unless `atomic` is False, either all of them are stored, or none. Then the other messages are sent, in the
    given order. The options are those of `broadcast`.

    Args:
        items: pairs `(stream, data)`, or triples `(stream, data, options)`. The third element is a dict with options
            for this item, which may be `transient`, `exclude_socket` and `idempotency_key`.
        atomic: whether the messages with a history are stored atomically: all of them or none. A Redis Cluster can
            guarantee this only for streams in one slot, which usually means one stream. With False, the guarantee holds
            for the messages of each slot, and the slots are written one after another. Other stores always guarantee
            this.

    Returns:
        A list with the return value of `broadcast` for each item.

    Raises:
        CableError: for the same reasons as `broadcast`.
        InvalidOption: also if `atomic` is True, and the streams are in different slots of a Redis Cluster. Nothing was
            sent.
    """
    options = BatchOptions(transient, immediate, to_others, exclude_socket, using, atomic)
    return Batch(prepare_batch(items, options), options).send()


async def abroadcast_batch(
    items: Iterable[BatchItem],
    *,
    transient: bool = False,
    immediate: bool = False,
    to_others: bool = False,
    exclude_socket: str | None = None,
    using: str | None = None,
    atomic: bool = True,
) -> list[StreamPosition | None]:
    """Async version of `broadcast_batch`. It recognises the same transactions as `abroadcast`."""
    options = BatchOptions(transient, immediate, to_others, exclude_socket, using, atomic)
    return await Batch(await aprepare_batch(items, options), options).asend()


@sync_only("aposition")
def position(stream: str) -> PagePosition:
    """Return the position of a stream's newest message, or `("", 0)` if the store does not know the stream.

    A view calls this *before* it reads the data of the web page, and passes the position to the client in that page.
    The client then receives exactly the messages after this position (see Pages: The position comes first). With the
    database engine, the position is read inside the transaction of this thread, if one is open.

    Raises:
        AsyncContextError: an event loop runs in this thread. Use `aposition`.
        InvalidStreamName: the name is not valid.
        StoreError: the store could not be read.
        NotSupported: the streams are in anycable-go (`BROADCAST_ADAPTER`).
    """
    name, store = resolve_stream(stream), get_engine().streams
    found = store.position(name)
    if found != NOWHERE:
        return PagePosition(found.epoch, found.offset, name)
    return _at_page(name, store.read(name, after=0, limit=0))


async def aposition(stream: str) -> PagePosition:
    """Async version of `position`.

    With the database engine, the position is read outside of the caller's transaction.
    """
    name, store = resolve_stream(stream), get_engine().streams
    found = await store.aposition(name)
    if found != NOWHERE:
        return PagePosition(found.epoch, found.offset, name)
    return _at_page(name, await store.aread(name, after=0, limit=0))


def _at_page(stream: str, page: StreamPage) -> PagePosition:
    """Return the position of a stream's newest message, from the result of a read.

    If the stream does not exist, the position contains the beginning of its first epoch (see `beginning_of`).
    """
    return PagePosition(page.epoch, page.tail, stream, "" if page.epoch else beginning_of(page.lineage).epoch)


@sync_only("ahistory")
def history(stream: str, *, limit: int = 100, after: int = 0) -> list[HistoryEntry]:
    """Return the messages in a stream's history, the oldest one first.

    Args:
        stream: the stream's name.
        limit: the maximum number of messages to return. If there are more, the oldest ones are returned.
        after: an offset. Only messages with greater offsets are returned.

    Raises:
        AsyncContextError: an event loop runs in this thread. Use `ahistory`.
        InvalidStreamName: the name is not valid.
        StoreError: the store could not be read.
        NotSupported: the streams are in anycable-go (`BROADCAST_ADAPTER`).
    """
    return _decode(get_engine().streams.read(resolve_stream(stream), after=after, limit=limit))


async def ahistory(stream: str, *, limit: int = 100, after: int = 0) -> list[HistoryEntry]:
    """Async version of `history`."""
    return _decode(await get_engine().streams.aread(resolve_stream(stream), after=after, limit=limit))


def _decode(page: StreamPage) -> list[HistoryEntry]:
    return [HistoryEntry(StreamPosition(page.epoch, entry.offset), json.loads(entry.data)) for entry in page.entries]


@sync_only("aforget")
def forget(stream: str, *, using: str | None = None) -> None:
    """Delete a stream's history and begin a new epoch. Subscribers are notified that their positions are lost.

    A stream that has never had a message is not changed.

    Inside transactions, the history is deleted after all of them have committed.

    Args:
        stream: the stream's name.
        using: wait only for a transaction on the database with this alias.

    Raises:
        AsyncContextError: an event loop runs in this thread. Use `aforget`.
        InvalidStreamName: the name is not valid.
        InvalidOption: `using` names no database.
        BroadcastError: autocommit is off on a database. Django then calls no functions after a commit.
        StoreError: the store could not be changed.
        NotSupported: the streams are in anycable-go (`BROADCAST_ADAPTER`).
    """
    store, name, forget_on_commit = _prepare_forget(stream, using)
    if not on_commit.defer_to_commit(forget_on_commit, using):
        store.forget(name)


async def aforget(stream: str, *, using: str | None = None) -> None:
    """Async version of `forget`. It recognises the same transactions as `abroadcast`."""
    store, name, forget_on_commit = _prepare_forget(stream, using)
    if not await on_commit.adefer_to_commit(forget_on_commit, using):
        await store.aforget(name)


def _prepare_forget(stream: str, using: str | None) -> tuple[StreamStore, str, on_commit.Schedule]:
    """Check the arguments. Return the store, the stream's name with its namespace, and the function to defer."""
    on_commit.check_using(using)
    require_own_servers("forget", "The history of anycable-go expires by its option --history_ttl.")
    name = resolve_stream(stream)
    store = get_engine().streams

    def forget_on_commit(databases: Sequence[str]) -> None:
        failed = partial(report_failure, type(store), [name])
        on_commit.call_after_commit(partial(store.forget, name), databases, failed=failed, remedy=on_commit.CALL_LATER)

    return store, name, forget_on_commit


class Batch:
    """Messages that are sent by one call. Stored messages are sent first, and transient messages after them.

    Args:
        items: the checked messages.
        options: the options of the call.
    """

    def __init__(self, items: Sequence[Outgoing], options: BatchOptions) -> None:
        self._items = items
        self._immediate = options.immediate
        self._using = options.using
        self._store = get_engine().streams
        self._kept = [(item.stream, item.message) for item in self._items if item.kept]
        self._others = [(item.stream, item.message) for item in self._items if not item.kept]
        self._atomic = options.atomic or len(self._kept) < 2
        if self._atomic and len(self._kept) > 1:
            require_one_shard(self._store.shard, {stream for stream, _ in self._kept})

    @classmethod
    def of_one(cls, stream: str, data: Any, idempotency_key: str | None, options: BatchOptions) -> Self:
        """Return a batch with one message.

        Raises:
            BroadcastError: the message or an option is not valid.
        """
        return cls(prepare_batch([(stream, data, {"idempotency_key": idempotency_key})], options), options)

    def send(self) -> list[StreamPosition | None]:
        """Send the messages now or after the commit, and return their positions, as `broadcast` does."""
        if not self._immediate and on_commit.defer_to_commit(self._send_on_commit, self._using):
            return [None] * len(self._items)
        store = self._store
        append = store.append if self._atomic else store.append_parts
        positions = append(self._kept) if self._kept else []
        with self._tolerate_errors_after_append():
            self._publish_others()
        self._report()
        return self._all_positions(positions)

    async def asend(self) -> list[StreamPosition | None]:
        """Async version of `send`."""
        if not self._immediate and await on_commit.adefer_to_commit(self._send_on_commit, self._using):
            return [None] * len(self._items)
        store = self._store
        append = store.aappend if self._atomic else store.aappend_parts
        positions = await append(self._kept) if self._kept else []
        with self._tolerate_errors_after_append():
            if self._others:
                await self._store.apublish_transients(self._others)
        self._report()
        return self._all_positions(positions)

    def _send_on_commit(self, databases: Sequence[str]) -> None:
        if self._others or observers or len(databases) > 1:
            on_commit.check_hooks(databases)  # before anything is stored
        parts = [self._kept] if self._kept else []
        if not self._atomic:
            parts = [[self._kept[at] for at in part] for part in split_by_shard(self._store.shard, self._kept)]
        for part in parts:
            if len(databases) == 1:
                self._store.append_on_commit(part, using=databases[0])
            else:
                on_commit.call_after_commit(partial(self._store.append, part), databases, failed=self._failure(part))
        if self._others:
            on_commit.call_after_commit(self._publish_others, databases, failed=self._failure(self._others))
        if observers:
            on_commit.call_after_commit(self._report, databases, failed=self._failure(()))

    def _report(self) -> None:
        for observer in observers:
            observer(self._items)

    def _failure(self, items: Sequence[tuple[str, Any]]) -> partial[None]:
        return partial(report_failure, type(self._store), [stream for stream, _ in items])

    def _publish_others(self) -> None:
        if self._others:
            self._store.publish_transients(self._others)

    @contextmanager
    def _tolerate_errors_after_append(self) -> Iterator[None]:
        """Log a `BroadcastError` if messages were stored. If it were raised, the caller might send them twice."""
        try:
            yield
        except BroadcastError:
            if not self._kept:
                raise
            logger.warning(
                "The transient messages of a batch could not be sent. Its other messages were stored.", exc_info=True
            )

    def _all_positions(self, kept: Iterable[StreamPosition]) -> list[StreamPosition | None]:
        positions = iter(kept)
        found = [next(positions) if item.kept else None for item in self._items]
        # An engine that numbers no messages returns positions without an epoch.
        return [position if position is not None and position.epoch else None for position in found]
