"""Checks a broadcast before it is sent: its stream, its payload and its options."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

from django.core.serializers.json import DjangoJSONEncoder

from .concurrency.on_commit import check_using
from .conf import get_settings
from .exceptions import InvalidOption, InvalidPayload, InvalidStreamName, PayloadTooLarge
from .middleware import current_socket_id
from .protocol.payloads import is_falsy
from .stores.streams.base import Message

MAX_NAME_LENGTH = 255
MAX_KEY_LENGTH = 255
MAX_SOCKET_ID_LENGTH = 64


class ItemOptions(TypedDict, total=False):
    """The options of a single item of a batch. They mean the same as those of `broadcast`."""

    transient: bool
    exclude_socket: str | None
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """The options that all items of a batch share. They mean the same as those of `broadcast`."""

    transient: bool
    immediate: bool
    to_others: bool
    exclude_socket: str | None
    using: str | None


BatchItem = tuple[str, Any] | tuple[str, Any, ItemOptions]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A checked broadcast, ready to be sent.

    Args:
        stream: the name of the stream.
        message: the message, with the payload as JSON.
        kept: whether the stream keeps it and gives it a position.
    """

    stream: str
    message: Message
    kept: bool


def prepare_batch(items: Iterable[BatchItem], options: BatchOptions) -> list[Outgoing]:
    """Check the items of a batch and encode their payloads.

    Raises:
        InvalidStreamName, InvalidPayload, InvalidOption: as for `broadcast`.
    """
    check_using(options.using, immediate=options.immediate)
    exclude = _excluded(options.to_others, options.exclude_socket)
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
                transient=own.get("transient", options.transient),
                exclude=_excluded(False, own["exclude_socket"]) if "exclude_socket" in own else exclude,
                idempotency_key=own.get("idempotency_key"),
            )
        )
    return batch


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
    """Return the first control character or surrogate of a text; `""` if there is none."""
    if text.isprintable():
        return ""
    return next((character for character in text if unicodedata.category(character) in ("Cc", "Cs")), "")


def _prepare(stream: str, data: Any, *, transient: bool, exclude: str, idempotency_key: str | None) -> Outgoing:
    kept = not transient and get_settings().policy(check_stream_name(stream)).history_size > 0
    key = ""
    if idempotency_key is not None:
        key = _check_key(idempotency_key)
        if not kept:
            what = "A transient broadcast is not kept" if transient else f"The stream {stream!r} keeps no history"
            raise InvalidOption(f"{what}, so it cannot have an idempotency_key.")
    return Outgoing(stream, Message(_encode(stream, data), exclude, key), kept)


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
    # Any other text was sent by a client, and cannot be a session id.
    return socket if len(socket) <= MAX_SOCKET_ID_LENGTH and socket.isascii() and socket.isprintable() else ""


def _encode(stream: str, data: Any) -> str:
    try:
        text = json.dumps(data, cls=DjangoJSONEncoder, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(f"The payload for {stream!r} cannot be encoded as JSON: {error}") from error
    if is_falsy(text):
        raise InvalidPayload(
            f"The payload for {stream!r} is {data!r}; clients drop what is falsy in JavaScript. Wrap it in a dict."
        )
    limit = get_settings().max_broadcast_size
    if size > limit:
        raise PayloadTooLarge(
            f"The payload for {stream!r} has {size} bytes; RELIABLE_CABLE['MAX_BROADCAST_SIZE'] allows {limit}."
        )
    return text
