"""Parses the commands of clients (see Protocol: Subscriptions).

If a required field is missing or invalid, `ProtocolError` is raised. Invalid fields of a history request are ignored,
because released clients send `false` or nothing if they have no value.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from reliable_cable.exceptions import ProtocolError

from .constants import CALL, MAX_CALL_ID_LENGTH
from .nesting import SHORTEST_TOO_DEEP, TOO_DEEP, is_too_deep
from .positions import HistoryRequest, StreamPosition
from .presence import member_fault

#: The maximum length of an epoch in a history request, in characters. A longer epoch is cut off, because it cannot be
#: the epoch of a stream in any case.
MAX_EPOCH_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class PresenceClaim:
    """The id and info of a member, as a client claims them in `join` or `subscribe`. The claim is not verified here."""

    id: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class Command:
    """A command for one subscription.

    Args:
        identifier: the channel and its params, as JSON text. The text is never changed, because clients find the
            subscription by exactly this text.
    """

    identifier: str


@dataclass(frozen=True, slots=True)
class Subscribe(Command):
    """The command that subscribes to a channel.

    Args:
        history: the messages to replay after the confirmation; None if no messages are requested.
        presence: the member to add to the stream's presence; None to add no member.
    """

    history: HistoryRequest | None = None
    presence: PresenceClaim | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe(Command):
    """The command that ends a subscription. The server does not acknowledge it."""


@dataclass(frozen=True, slots=True)
class Perform(Command):
    """The command that calls an action of the channel. On the wire, it is named `message`.

    Args:
        data: the decoded JSON object. Its key `action` contains the name of the action.
        call: the id that the client gave the call, see Protocol: Calls. The answer contains this id. None if the client
            requests no answer.
    """

    data: Mapping[str, Any]
    call: str | None = None


@dataclass(frozen=True, slots=True)
class History(Command):
    """The command that requests messages that a subscription has missed."""

    history: HistoryRequest


@dataclass(frozen=True, slots=True)
class Whisper(Command):
    """The command that sends a message to the other subscribers of the stream.

    Args:
        data: the message as JSON text.
    """

    data: str


@dataclass(frozen=True, slots=True)
class Join(Command):
    """The command that adds a member to the presence of the subscription's stream."""

    presence: PresenceClaim


@dataclass(frozen=True, slots=True)
class Leave(Command):
    """The command that removes the subscription's member from the stream's presence."""


@dataclass(frozen=True, slots=True)
class Presence(Command):
    """The command that requests the members of the subscription's stream.

    Args:
        return_records: whether the answer lists the members. If False, the answer contains only their number.
    """

    return_records: bool = True


@dataclass(frozen=True, slots=True)
class Ping:
    """The command that requests a `pong` from the server."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The command that answers a ping of the server."""


AnyCommand = Subscribe | Unsubscribe | Perform | History | Whisper | Join | Leave | Presence | Ping | Pong


class UnansweredSubscribeError(ProtocolError):
    """Raised if a `subscribe` is invalid, but has an identifier by which the server can answer it.

    The server must answer such a command with `reject_subscription`. Without an answer, the client would repeat the
    command, and then close the channel.
    """

    def __init__(self, identifier: str, why: str) -> None:
        super().__init__(why)
        self.identifier = identifier


def parse(text: str, max_identifier_size: int = 2048) -> AnyCommand:
    """Parse the text of one WebSocket message.

    Args:
        text: the received text.
        max_identifier_size: the maximum size of an identifier, in bytes.

    Raises:
        ProtocolError: the text is not a valid command.
        UnansweredSubscribeError: the text is an invalid `subscribe` that can be answered.
    """
    frame = _load_object(text, "the frame")
    name = frame.get("command")
    if name == "ping":
        return Ping()
    if name == "pong":
        return Pong()
    parser = _PARSERS.get(name) if isinstance(name, str) else None
    if parser is None:
        raise ProtocolError(f"the command {name!r:.80} is unknown; known are {', '.join(_PARSERS)}, ping, pong")
    identifier = frame.get("identifier")
    if not isinstance(identifier, str) or not identifier:
        raise ProtocolError(f"the identifier of {name!r} must be a non-empty string")
    try:
        size = len(identifier.encode())
        if size > max_identifier_size:
            raise ProtocolError(f"the identifier of {name!r} has {size} bytes; {max_identifier_size} are allowed")
        return parser(identifier, frame)
    except UnicodeEncodeError:
        raise ProtocolError(f"the identifier of {name!r} is not Unicode text") from None
    except ProtocolError as error:
        if name == "subscribe":
            raise UnansweredSubscribeError(identifier, str(error)) from None
        raise


def parse_identifier(identifier: str) -> tuple[str, dict[str, Any]]:
    """Return the channel name and the params of an identifier.

    Raises:
        ProtocolError: the identifier is not a JSON object with a key `channel`, or is nested too deeply.
    """
    params = _load_object(identifier, "the identifier")
    channel = params.pop("channel", None)
    if not isinstance(channel, str) or not channel:
        raise ProtocolError("the identifier has no 'channel' that is a non-empty string")
    return channel, params


def encode(value: Any) -> str:
    """Encode a value from a client as JSON, so that it can be sent to other clients.

    Raises:
        ProtocolError: the value contains infinity or a lone surrogate, which JSON cannot represent.
    """
    try:
        text = _ENCODER.encode(value)
        text.encode()
    except ValueError:
        raise ProtocolError("the data has a number or a text that JSON cannot represent") from None
    return text


def refuse_constant(name: str) -> None:
    """Refuse a constant such as `NaN`, which `json` would accept."""
    raise ValueError(f"{name} is not JSON")


#: One decoder and one encoder for all calls, because `json.loads` and `json.dumps` create a new one for each call with
#: options.
_DECODER = json.JSONDecoder(parse_constant=refuse_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _load_object(text: str, subject: str) -> dict[str, Any]:
    """Decode a JSON object.

    Args:
        text: the JSON text.
        subject: a description of the text, for the error message.

    Raises:
        ProtocolError: the text is not a JSON object, or is nested too deeply.
    """
    # Most JSON texts are too short to be nested too deeply, so their brackets need not be counted.
    if len(text) >= SHORTEST_TOO_DEEP and is_too_deep(text):
        raise ProtocolError(f"{subject} has {TOO_DEEP}")
    try:
        # `raw_decode` does not skip white space, which saves a third of the time. Texts that begin or end with white
        # space are rare, and are decoded by `decode`.
        value, end = _DECODER.raw_decode(text) if text[:1] == "{" else (None, -1)
        if end != len(text):
            value = _DECODER.decode(text)
    except ValueError:
        raise ProtocolError(f"{subject} is not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"{subject} is not a JSON object")
    return value


def _parse_history(value: Any) -> HistoryRequest:
    """Parse a history request. A field of a wrong type counts as missing (see Protocol: History)."""
    if not isinstance(value, dict):
        return HistoryRequest()
    since = value.get("since")
    if isinstance(since, bool) or not isinstance(since, int | float) or not 0 <= since < math.inf:
        since = None
    positions: dict[str, StreamPosition] = {}
    streams = value.get("streams")
    if isinstance(streams, dict):
        for name, record in streams.items():
            if not isinstance(record, dict):
                continue
            epoch, offset = record.get("epoch"), record.get("offset")
            if isinstance(epoch, str) and isinstance(offset, int) and not isinstance(offset, bool):
                # A negative offset means the same as 0: the position before the first message.
                positions[name] = StreamPosition(epoch[:MAX_EPOCH_LENGTH], max(offset, 0))
    return HistoryRequest(since, positions)


def _parse_claim(value: Any) -> PresenceClaim:
    claim = _parse_optional_claim(value)
    if claim is None:
        raise ProtocolError("the presence has no 'id' that is a non-empty string or a number")
    return claim


def _parse_optional_claim(value: Any) -> PresenceClaim | None:
    if not isinstance(value, dict):
        return None
    id_ = value.get("id")
    if isinstance(id_, int | float) and not isinstance(id_, bool):
        id_ = str(id_)
    if not isinstance(id_, str) or not id_:
        return None
    encode(id_)
    fault = member_fault(id_, encode(value.get("info")))
    if fault:
        raise ProtocolError(f"the presence is refused: {fault}")
    return PresenceClaim(id_, value.get("info"))


def _parse_subscribe(identifier: str, frame: Mapping[str, Any]) -> Subscribe:
    history = _parse_history(frame["history"]) if isinstance(frame.get("history"), dict) else None
    return Subscribe(identifier, history, _parse_optional_claim(frame.get("presence")))


def _parse_perform(identifier: str, frame: Mapping[str, Any]) -> Perform:
    data = frame.get("data")
    if isinstance(data, str):
        data = _load_object(data, "the data of 'message'")
    elif not isinstance(data, dict):
        raise ProtocolError("the data of 'message' is not a JSON object")
    call = data.pop(CALL, None)
    if call is not None:
        if not isinstance(call, str) or not 0 < len(call) <= MAX_CALL_ID_LENGTH:
            raise ProtocolError(f"the {CALL!r} of 'message' is not a string of 1 to {MAX_CALL_ID_LENGTH} characters")
        encode(call)
    return Perform(identifier, data, call)


def _parse_whisper(identifier: str, frame: Mapping[str, Any]) -> Whisper:
    return Whisper(identifier, encode(frame.get("data")))


def _parse_presence(identifier: str, frame: Mapping[str, Any]) -> Presence:
    data = frame.get("data")
    return Presence(identifier, not (isinstance(data, dict) and data.get("return_records") is False))


_PARSERS: Mapping[str, Callable[[str, Mapping[str, Any]], AnyCommand]] = {
    "subscribe": _parse_subscribe,
    "unsubscribe": lambda identifier, _: Unsubscribe(identifier),
    "message": _parse_perform,
    "history": lambda identifier, frame: History(identifier, _parse_history(frame.get("history"))),
    "whisper": _parse_whisper,
    "join": lambda identifier, frame: Join(identifier, _parse_claim(frame.get("presence"))),
    "leave": lambda identifier, _: Leave(identifier),
    "presence": _parse_presence,
}
