"""Checks the stream, the payload and the options of broadcasts, before anything is sent."""

import asyncio
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias, TypedDict

from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Model

from .concurrency.on_commit import check_using
from .conf import get_settings
from .exceptions import ChannelError, InvalidOption, InvalidPayload, InvalidStreamName, PayloadTooLarge
from .identity import row_name
from .middleware import current_socket_id
from .namespaces import current_namespace, qualify, split_namespace
from .protocol.nesting import TOO_DEEP, is_too_deep
from .protocol.payloads import is_falsy
from .protocol.positions import UNKNOWN_POSITION, PagePosition, StreamPosition
from .stores.sessions.base import is_session_id
from .stores.streams.base import Message

MAX_NAME_LENGTH = 255
#: Prefixes of stream names. A stream with such a name is never public, even if a pattern of `PUBLIC_STREAMS` matches
#: the name. Apps add their prefixes in `ready()`.
private_prefixes: set[str] = set()
MAX_KEY_LENGTH = 255
#: How many messages of a batch are prepared in one iteration of the event loop. Their preparation takes less than 1 ms.
PER_ITERATION: Final = 50


class ItemOptions(TypedDict, total=False):
    """The options that an item of a batch may have. They have the same meanings as those of `broadcast`."""

    transient: bool
    exclude_socket: str | None
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """The options for all items of a batch. They have the same meanings as those of `broadcast`."""

    transient: bool
    immediate: bool
    to_others: bool
    exclude_socket: str | None
    using: str | None
    #: Whether the messages with a history are stored atomically: all of them or none.
    atomic: bool = True


BatchItem = tuple[str, Any] | tuple[str, Any, ItemOptions]

#: The type of values that can be converted to a stream's name, see `target_name`.
Streamable: TypeAlias = "str | int | Model | Sequence[Streamable]"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A checked broadcast that is ready to be sent.

    Args:
        stream: the name of the stream, with its namespace.
        message: the message, which contains the payload as JSON.
        kept: whether the message is stored and gets a position.
    """

    stream: str
    message: Message
    kept: bool


@dataclass(frozen=True, slots=True)
class Address:
    """The checked arguments of a broadcast, except the payload.

    Args:
        stream: the name of the stream, with its namespace.
        exclude: the session id of the connection that does not receive the message; `""` if none is excluded.
        idempotency_key: the idempotency key; `""` if none was given.
        kept: whether the message is stored and gets a position.
    """

    stream: str
    exclude: str
    idempotency_key: str
    kept: bool

    def outgoing(self, data: Any) -> Outgoing:
        """Check the payload, and return the broadcast that contains it.

        Raises:
            InvalidPayload: the payload cannot be broadcast.
        """
        try:
            text, size = encode_json(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidPayload(f"The payload for {self._shown} cannot be encoded as JSON: {error}") from error
        if is_falsy(text):
            raise InvalidPayload(
                f"The payload for {self._shown} is {data!r}; clients drop messages that are falsy in JavaScript. "
                "Wrap it in a dict."
            )
        limit = get_settings().max_broadcast_size
        if size > limit:
            raise PayloadTooLarge(
                f"The payload for {self._shown} has {size} bytes; RELIABLE_CABLE['MAX_BROADCAST_SIZE'] allows {limit}."
            )
        return Outgoing(self.stream, Message(text, self.exclude, self.idempotency_key), self.kept)

    @property
    def _shown(self) -> str:
        """The name of the stream for error messages, without its namespace."""
        return repr(split_namespace(self.stream)[1])


def prepare_batch(items: Iterable[BatchItem], options: BatchOptions) -> list[Outgoing]:
    """Check the items of a batch and encode their payloads.

    Raises:
        InvalidStreamName, InvalidPayload, InvalidOption: as for `broadcast`.
    """
    check_using(options.using, immediate=options.immediate)
    excluded = _excluded_socket(options.to_others, options.exclude_socket)
    batch = []
    for stream, data, *rest in items:
        item_options = rest[0] if rest else ItemOptions()
        unknown = set(item_options) - ItemOptions.__optional_keys__
        if unknown:
            raise InvalidOption(
                f"An item of a batch has the unknown option {min(unknown)!r}; allowed: "
                f"{', '.join(sorted(ItemOptions.__optional_keys__))}."
            )
        transient, key = item_options.get("transient", options.transient), item_options.get("idempotency_key")
        own = _excluded_socket(False, item_options["exclude_socket"]) if "exclude_socket" in item_options else excluded
        batch.append(_address(stream, transient, own, key).outgoing(data))
    return batch


async def aprepare_batch(items: Iterable[BatchItem], options: BatchOptions) -> list[Outgoing]:
    """Async version of `prepare_batch`. Other tasks can run after every `PER_ITERATION` items."""
    remaining = iter(items)
    batch = prepare_batch(islice(remaining, PER_ITERATION), options)
    while len(batch) % PER_ITERATION == 0 and (part := list(islice(remaining, PER_ITERATION))):
        await asyncio.sleep(0)
        batch += prepare_batch(part, options)
    return batch


def prepare_address(stream: object, idempotency_key: str | None, options: BatchOptions) -> Address:
    """Check the arguments of a broadcast whose payload is not known yet.

    Raises:
        InvalidStreamName, InvalidOption: as for `broadcast`.
    """
    check_using(options.using, immediate=options.immediate)
    excluded = _excluded_socket(options.to_others, options.exclude_socket)
    return _address(stream, options.transient, excluded, idempotency_key)


def check_stream_name(stream: object) -> str:
    """Check the name of a stream, and return it.

    Raises:
        InvalidStreamName: the name is not a string of 1 to 255 characters, or contains a control character or a
            surrogate.
    """
    if not isinstance(stream, str):
        raise InvalidStreamName(
            f"The stream {stream!r:.200} is of the type {type(stream).__name__}; it must be a string, such as the "
            "result of `ChatChannel.broadcasting_for(target)`."
        )
    if not 0 < len(stream) <= MAX_NAME_LENGTH:
        raise InvalidStreamName(
            f"The stream {stream[:40]!r} has {len(stream)} characters; 1 to {MAX_NAME_LENGTH} are allowed."
        )
    character = _unstorable_character(stream)
    if character:
        raise InvalidStreamName(
            f"The stream {stream!r} has the character {character!r}; control characters and surrogates are not allowed."
        )
    return stream


def resolve_stream(stream: object) -> str:
    """Check the name of a stream, and return it with the current namespace.

    Raises:
        InvalidStreamName: see `check_stream_name`.
        BroadcastError: see `current_namespace`.
    """
    return qualify_stream(stream, current_namespace())


def qualify_stream(stream: object, namespace: str) -> str:
    """Check the name of a stream, and return it with a namespace.

    Raises:
        InvalidStreamName: see `check_stream_name`. The namespace counts as a part of the name.
    """
    name = qualify(namespace, check_stream_name(stream))
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidStreamName(
            f"The stream {stream!r:.40} has {len(name)} characters with its namespace {namespace!r}; "
            f"{MAX_NAME_LENGTH} are allowed."
        )
    return name


def target_name(target: Any) -> str:
    """Convert a target to a string, which is a part of a stream's name (see `Channel.broadcasting_for`).

    Raises:
        ChannelError: the value cannot be converted.
    """
    if isinstance(target, Model):
        if target.pk is None:
            raise ChannelError(f"{target!r} is not saved. Without a primary key, it has no stream.")
        return row_name(target)
    if isinstance(target, list | tuple) and target:
        return ":".join(target_name(part) for part in target)
    if isinstance(target, str | int) and not isinstance(target, bool) and target != "":
        return str(target)
    raise ChannelError(
        f"{target!r} names no stream. Give a saved model instance, a string, a number, or a list of these."
    )


def _unstorable_character(text: str) -> str:
    """Return the first control character or surrogate in a string; `""` if it has none."""
    if text.isprintable():
        return ""
    return next((character for character in text if unicodedata.category(character) in ("Cc", "Cs")), "")


def _address(stream: object, transient: bool, exclude: str, idempotency_key: str | None) -> Address:
    name = qualify_stream(stream, current_namespace())
    kept = not transient and get_settings().policy(name).history_size > 0
    key = ""
    if idempotency_key is not None:
        key = _check_key(idempotency_key)
        if get_settings().broadcast_adapter is not None:
            raise InvalidOption(
                "anycable-go (BROADCAST_ADAPTER) does not recognise repeated messages, so an idempotency_key cannot be "
                "used. Put a key into the payload, and let clients ignore repeated keys."
            )
        if not kept:
            reason = "A transient message is not stored" if transient else f"The stream {stream!r} keeps no history"
            raise InvalidOption(f"{reason}, so an idempotency_key cannot be used.")
    return Address(name, exclude, key, kept)


def _check_key(key: object) -> str:
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_LENGTH or _unstorable_character(key):
        raise InvalidOption(
            f"The idempotency_key is {key!r}; it must be a string of 1 to {MAX_KEY_LENGTH} characters, without control "
            "characters."
        )
    return key


def _excluded_socket(to_others: bool, exclude_socket: str | None) -> str:
    if exclude_socket is None:
        socket = current_socket_id() if to_others else ""
    elif to_others:
        raise InvalidOption("Give to_others or exclude_socket, not both.")
    elif not isinstance(exclude_socket, str):
        raise InvalidOption(f"exclude_socket is {exclude_socket!r}; it must be a session id, which is a string.")
    else:
        socket = exclude_socket
    # A client may send any string as its session id. If the string cannot be a session id, no connection is excluded.
    return socket if is_session_id(socket) else ""


def encode_json(value: Any) -> tuple[str, int]:
    """Encode a value as JSON. Return the text and its size in bytes.

    Raises:
        TypeError, ValueError, RecursionError: the value cannot be encoded, or is nested too deeply.
    """
    text = json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if is_too_deep(text):
        raise ValueError(f"it has {TOO_DEEP}")
    return text, len(text.encode())


def encode_channel_value(value: Any, described: str) -> tuple[str, int]:
    """Encode a value that a channel sends as JSON. Return the text and its size in bytes.

    Args:
        value: the value to encode.
        described: a description of the value for the error message, such as `ChatChannel: the result`.

    Raises:
        ChannelError: the value cannot be encoded, or is nested too deeply.
    """
    try:
        return encode_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChannelError(f"{described} {value!r:.200} cannot be encoded as JSON: {error}.") from error


def copy_json(value: Any) -> tuple[Any, int]:
    """Return a deep copy of a JSON value, and the size of its JSON text in bytes.

    Raises:
        TypeError, ValueError, RecursionError: the value is not a JSON value, or is nested too deeply.
    """
    text = json.dumps(value, allow_nan=False)
    if is_too_deep(text):
        raise ValueError(f"it has {TOO_DEEP}")
    return json.loads(text), len(text)


def start_position(after: object, stream: str) -> PagePosition | None:
    """Return the position after which a subscription receives a stream; None if it receives only new messages.

    Args:
        after: the argument of `Channel.stream_from`: a position, None, or a value that the client has sent.
        stream: the name of the stream, with its namespace.

    Returns:
        The position. If the client's value is not a position of this stream, the result is an unknown position, so
        that the client receives `reject_history`.

    Raises:
        ChannelError: the argument is a position of another stream, or is not one that `position()` has returned.
    """
    if after is None:
        return None
    if not isinstance(after, StreamPosition):
        found = PagePosition.parse(after, stream)
        return found or PagePosition(UNKNOWN_POSITION.epoch, UNKNOWN_POSITION.offset, stream)
    if not isinstance(after, PagePosition) or after.stream != stream:
        raise ChannelError(f"{after!r} is not a position that position() has returned for the stream {stream!r}.")
    return after
