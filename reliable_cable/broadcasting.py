"""Broadcasting from anywhere: views, signals, tasks, the shell. Knows stores only, no hub and no connection."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections, transaction

from .conf import get_settings
from .engine import get_engine
from .exceptions import BroadcastError, InvalidOption, InvalidPayload, InvalidStreamName, PayloadTooLarge
from .middleware import current_socket_id
from .protocol.positions import StreamPosition
from .streams.base import Message, StreamStore
from .threads import run_sensitive

logger = logging.getLogger("reliable_cable")

MAX_NAME_LENGTH = 255
MAX_KEY_LENGTH = 255
MAX_SOCKET_ID_LENGTH = 64

#: JSON texts of what is falsy in JavaScript: the client drops these without a word (PROTOCOL.md, 11).
_FALSY = frozenset({"null", "false", '""', "0", "-0", "0.0", "-0.0"})


class ItemOptions(TypedDict, total=False):
    """The options that an item of a batch may have of its own: those of `broadcast`."""

    transient: bool
    exclude_socket: str | None
    idempotency_key: str | None


BatchItem = tuple[str, Any] | tuple[str, Any, ItemOptions]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A kept message of a stream.

    Args:
        position: where in the stream it is.
        data: the payload, decoded.
    """

    position: StreamPosition
    data: Any


def broadcast(
    stream: str,
    data: Any,
    *,
    transient: bool = False,
    immediate: bool = False,
    to_others: bool = False,
    exclude_socket: str | None = None,
    idempotency_key: str | None = None,
) -> StreamPosition | None:
    """Send a message to everyone who is subscribed to a stream, now or after a reconnect.

    Inside a transaction it waits for the commit: rolled back, it never happened. A payload is fixed by the call.

    Args:
        stream: the stream's name, at most 255 characters, none of them a control character.
        data: what `DjangoJSONEncoder` can encode; not what is falsy in JavaScript (None, False, 0, "").
        transient: for those who are connected right now: neither kept nor numbered.
        immediate: don't wait for the commit of the transaction that is open, if one is.
        to_others: not to the connection named by the current request's `X-Socket-ID`, if it names one.
        exclude_socket: not to the connection with this session id.
        idempotency_key: at most 255 characters. Repeating a broadcast with its key sends nothing and returns the first
            one's position, as long as the stream keeps that one.

    Returns:
        The position; None if the message is transient, or waits for a commit.

    Raises:
        InvalidStreamName: the name cannot be one.
        InvalidPayload: the payload cannot be sent.
        InvalidOption: the options contradict each other, or cannot be used with this stream.
        BroadcastError: nothing was sent.
        BroadcastUncertain: whether it was stored is unknown; repeating it with the same `idempotency_key` is safe.
    """
    exclude = _excluded(to_others, exclude_socket)
    item = _prepare(stream, data, transient=transient, exclude=exclude, idempotency_key=idempotency_key)
    return _send([item], immediate)[0]


async def abroadcast(stream: str, data: Any, **options: Any) -> StreamPosition | None:
    """Async twin of `broadcast`."""
    return await run_sensitive(partial(broadcast, stream, data, **options))


def broadcast_batch(
    items: Iterable[BatchItem],
    *,
    transient: bool = False,
    immediate: bool = False,
    to_others: bool = False,
    exclude_socket: str | None = None,
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
    exclude = _excluded(to_others, exclude_socket)
    batch = []
    for stream, data, *rest in items:
        own = rest[0] if rest else ItemOptions()
        unknown = set(own) - ItemOptions.__optional_keys__
        if unknown:
            raise InvalidOption(
                f"An item of a batch has the unknown option {min(unknown)!r}; allowed: "
                f"{', '.join(sorted(ItemOptions.__optional_keys__))}."
            )
        batch.append(
            _prepare(
                stream,
                data,
                transient=own.get("transient", transient),
                exclude=_excluded(False, own["exclude_socket"]) if "exclude_socket" in own else exclude,
                idempotency_key=own.get("idempotency_key"),
            )
        )
    return _send(batch, immediate)


async def abroadcast_batch(items: Iterable[BatchItem], **options: Any) -> list[StreamPosition | None]:
    """Async twin of `broadcast_batch`."""
    return await run_sensitive(partial(broadcast_batch, items, **options))


def position(stream: str) -> StreamPosition:
    """Return the position of a stream's newest message: `("", 0)` if it never had any.

    Raises:
        InvalidStreamName: the name cannot be one.
        StoreError: the store could not be read.
    """
    return get_engine().streams.position(check_stream_name(stream))


async def aposition(stream: str) -> StreamPosition:
    """Async twin of `position`."""
    return await get_engine().streams.aposition(check_stream_name(stream))


def history(stream: str, *, limit: int = 100, after: int = 0) -> list[HistoryEntry]:
    """Return a stream's kept messages, oldest first.

    Args:
        stream: its name.
        limit: the greatest number of messages to return.
        after: return messages with greater offsets only.

    Raises:
        InvalidStreamName: the name cannot be one.
        StoreError: the store could not be read.
    """
    page = get_engine().streams.read(check_stream_name(stream), after=after, limit=limit)
    return [HistoryEntry(StreamPosition(page.epoch, entry.offset), json.loads(entry.data)) for entry in page.entries]


async def ahistory(stream: str, *, limit: int = 100, after: int = 0) -> list[HistoryEntry]:
    """Async twin of `history`."""
    page = await get_engine().streams.aread(check_stream_name(stream), after=after, limit=limit)
    return [HistoryEntry(StreamPosition(page.epoch, entry.offset), json.loads(entry.data)) for entry in page.entries]


def forget(stream: str) -> None:
    """Delete a stream's history and begin a new epoch: its subscribers are told that they lost their place.

    Inside a transaction this waits for the commit, as broadcasts do.

    Raises:
        InvalidStreamName: the name cannot be one.
        StoreError: the store could not be changed.
    """
    store = get_engine().streams
    call = partial(store.forget, check_stream_name(stream))
    alias = open_transaction()
    if alias is None:
        call()
    else:
        transaction.on_commit(call, using=alias)


async def aforget(stream: str) -> None:
    """Async twin of `forget`."""
    await run_sensitive(partial(forget, stream))


def check_stream_name(stream: object) -> str:
    """Return `stream` if it can be a stream's name.

    Raises:
        InvalidStreamName: it is not a string, empty, longer than 255 characters, or has control characters.
    """
    if not isinstance(stream, str):
        raise InvalidStreamName(f"The stream {stream!r} is a {type(stream).__name__}; a stream's name is a string.")
    if not 0 < len(stream) <= MAX_NAME_LENGTH:
        raise InvalidStreamName(
            f"The stream {stream[:40]!r} has {len(stream)} characters; 1 to {MAX_NAME_LENGTH} are allowed."
        )
    bad = _unstorable(stream)
    if bad:
        raise InvalidStreamName(
            f"The stream {stream!r} has the character {bad!r}; control characters and surrogates are not allowed."
        )
    return stream


def _unstorable(text: str) -> str:
    """Return the first control character or surrogate."""
    if text.isprintable():
        return ""
    return next((character for character in text if unicodedata.category(character) in ("Cc", "Cs")), "")


def _prepare(
    stream: str, data: Any, *, transient: bool, exclude: str, idempotency_key: str | None
) -> tuple[str, Message, bool]:
    """Check a broadcast, and return its stream, its message and whether that is kept."""
    kept = not transient and get_settings().policy(check_stream_name(stream)).history_size > 0
    key = ""
    if idempotency_key is not None:
        key = _check_key(idempotency_key)
        if not kept:
            what = "A transient broadcast is not kept" if transient else f"The stream {stream!r} keeps no history"
            raise InvalidOption(f"{what}, so it cannot have an idempotency_key.")
    return stream, Message(_encode(stream, data), exclude, key), kept


def _check_key(key: object) -> str:
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_LENGTH or _unstorable(key):
        raise InvalidOption(
            f"The idempotency_key is {key!r}; it must be a string of 1 to {MAX_KEY_LENGTH} characters, without control "
            "characters."
        )
    return key


def _excluded(to_others: bool, exclude_socket: str | None) -> str:
    if exclude_socket is None:
        socket = current_socket_id() if to_others else ""
    elif to_others:
        raise InvalidOption("Give to_others or exclude_socket, not both.")
    elif not isinstance(exclude_socket, str):
        raise InvalidOption(f"exclude_socket is {exclude_socket!r}; it must be a session id, a string.")
    else:
        socket = exclude_socket
    # Anything else comes from a client and is nobody's session id.
    return socket if len(socket) <= MAX_SOCKET_ID_LENGTH and socket.isascii() and socket.isprintable() else ""


def _encode(stream: str, data: Any) -> str:
    try:
        text = json.dumps(data, cls=DjangoJSONEncoder, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(f"The payload for {stream!r} cannot be encoded as JSON: {error}") from error
    if text in _FALSY:
        raise InvalidPayload(
            f"The payload for {stream!r} is {data!r}; clients drop what is falsy in JavaScript. Wrap it in a dict."
        )
    limit = get_settings().max_broadcast_size
    if size > limit:
        raise PayloadTooLarge(
            f"The payload for {stream!r} has {size} bytes; RELIABLE_CABLE['MAX_BROADCAST_SIZE'] allows {limit}."
        )
    return text


def open_transaction() -> str | None:
    """Return the database whose transaction is open here: the store's own, else the default one, else any."""
    opened = [connection.alias for connection in connections.all(initialized_only=True) if connection.in_atomic_block]
    for alias in (get_settings().database, "default"):
        if alias in opened:
            return alias
    return opened[0] if opened else None


def _send(items: Sequence[tuple[str, Message, bool]], immediate: bool) -> list[StreamPosition | None]:
    store = get_engine().streams
    kept = [(name, message) for name, message, keep in items if keep]
    live = [(name, message) for name, message, keep in items if not keep]
    alias = None if immediate else open_transaction()
    if alias is not None:
        if kept:
            store.append_on_commit(kept, using=alias)
        if live:
            transaction.on_commit(partial(_publish, store, live), using=alias)
        return [None] * len(items)
    positions = iter(store.append(kept) if kept else ())
    try:
        _publish(store, live)
    except BroadcastError:
        if not kept:
            raise
        # What is kept was sent: an error would say that nothing was, and a repetition would send it twice.
        logger.warning("Transient messages of a batch were not sent.", exc_info=True)
    return [next(positions) if keep else None for _, _, keep in items]


def _publish(store: StreamStore, items: Iterable[tuple[str, Message]]) -> None:
    for name, message in items:
        store.publish_transient(name, message)
