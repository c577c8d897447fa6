"""What clients send, and how it is read (PROTOCOL.md, Client to server)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reliable_cable.exceptions import ProtocolError

from .positions import HistoryRequest, StreamPosition


@dataclass(frozen=True, slots=True)
class PresenceClaim:
    """Whom a client says it is, in `join` and `subscribe`."""

    id: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class Command:
    """A command that concerns one subscription. `identifier` is opaque and kept byte for byte."""

    identifier: str


@dataclass(frozen=True, slots=True)
class Subscribe(Command):
    """Subscribe, perhaps with history and presence."""

    history: HistoryRequest | None = None
    presence: PresenceClaim | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe(Command):
    """Unsubscribe; never acknowledged."""


@dataclass(frozen=True, slots=True)
class Perform(Command):
    """`message`: call an action; `data` is the decoded JSON object."""

    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class History(Command):
    """Ask for what was missed."""

    history: HistoryRequest


@dataclass(frozen=True, slots=True)
class Whisper(Command):
    """Send something to the other subscribers; `data` is JSON text."""

    data: str


@dataclass(frozen=True, slots=True)
class Join(Command):
    """Join the subscription's presence."""

    presence: PresenceClaim


@dataclass(frozen=True, slots=True)
class Leave(Command):
    """Leave the subscription's presence."""


@dataclass(frozen=True, slots=True)
class Presence(Command):
    """Ask who is there."""

    return_records: bool = True


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask for a `pong`."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer a ping."""


AnyCommand = Subscribe | Unsubscribe | Perform | History | Whisper | Join | Leave | Presence | Ping | Pong


class UnansweredSubscribeError(ProtocolError):
    """A `subscribe` that cannot be read beyond its identifier: to be answered `reject_subscription` (17)."""

    def __init__(self, identifier: str, why: str) -> None:
        super().__init__(why)
        self.identifier = identifier


def parse(text: str) -> AnyCommand:
    """Read one frame.

    Raises:
        ProtocolError: says what is wrong with it.
        UnansweredSubscribeError: the same, of a subscribe with an identifier.
    """
    try:
        frame = _loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("the frame is not JSON") from None
    if not isinstance(frame, dict):
        raise ProtocolError("the frame is not a JSON object")
    name = frame.get("command")
    if name == "ping":
        return Ping()
    if name == "pong":
        return Pong()
    read = _READERS.get(name) if isinstance(name, str) else None
    if read is None:
        raise ProtocolError(f"the command {name!r:.80} is unknown; known are {', '.join(_READERS)}, ping, pong")
    identifier = frame.get("identifier")
    if not isinstance(identifier, str) or not identifier:
        raise ProtocolError(f"the identifier of {name!r} is not a non-empty string")
    try:
        identifier.encode()
        return read(identifier, frame)
    except UnicodeEncodeError:
        raise ProtocolError(f"the identifier of {name!r} is not Unicode text") from None
    except ProtocolError as error:
        if name == "subscribe":
            raise UnansweredSubscribeError(identifier, str(error)) from None
        raise


def parse_identifier(identifier: str) -> tuple[str, dict[str, Any]]:
    """Return the channel's name and the params that an identifier holds.

    Raises:
        ProtocolError: it is not a JSON object with the name of a channel.
    """
    try:
        params = _loads(identifier)
    except (ValueError, RecursionError):
        raise ProtocolError("the identifier is not JSON") from None
    if not isinstance(params, dict):
        raise ProtocolError("the identifier is not a JSON object")
    channel = params.pop("channel", None)
    if not isinstance(channel, str) or not channel:
        raise ProtocolError("the identifier names no channel")
    return channel, params


def encode(value: Any) -> str:
    """Return the JSON text of what a client sent, to be sent to others.

    Raises:
        ProtocolError: it holds a number or text that JSON has not.
    """
    try:
        text = _ENCODER.encode(value)
        text.encode()
    except (ValueError, RecursionError):
        raise ProtocolError("the data holds what JSON text cannot carry") from None
    return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


#: Made once: `json.loads` and `json.dumps` make a new one for each call that has options.
_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _loads(text: str) -> Any:
    # `decode` looks for white space around it first, which takes half as long again.
    if text[:1] in ("{", "["):
        value, end = _DECODER.raw_decode(text)
        if end == len(text):
            return value
    return _DECODER.decode(text)


def _history(value: Any) -> HistoryRequest:
    """Read a history request leniently: what is missing, false or odd asks for nothing (7)."""
    if not isinstance(value, dict):
        return HistoryRequest()
    since = value.get("since")
    if isinstance(since, bool) or not isinstance(since, int | float) or not 0 < since < math.inf:
        since = None
    positions: dict[str, StreamPosition] = {}
    streams = value.get("streams")
    if isinstance(streams, dict):
        for name, record in streams.items():
            if not isinstance(record, dict):
                continue
            epoch, offset = record.get("epoch"), record.get("offset")
            if isinstance(epoch, str) and isinstance(offset, int) and not isinstance(offset, bool):
                # Zero and absent are alike to the client: a position that names no message (8).
                positions[name] = StreamPosition(epoch, max(offset, 0))
    return HistoryRequest(since, positions)


def _claim(value: Any) -> PresenceClaim:
    claim = _optional_claim(value)
    if claim is None:
        raise ProtocolError("presence has no id")
    return claim


def _optional_claim(value: Any) -> PresenceClaim | None:
    if not isinstance(value, dict):
        return None
    id_ = value.get("id")
    if isinstance(id_, int | float) and not isinstance(id_, bool):
        id_ = str(id_)
    if not isinstance(id_, str) or not id_:
        return None
    encode([id_, value.get("info")])
    return PresenceClaim(id_, value.get("info"))


def _read_subscribe(identifier: str, frame: Mapping[str, Any]) -> Subscribe:
    history = _history(frame["history"]) if isinstance(frame.get("history"), dict) else None
    return Subscribe(identifier, history, _optional_claim(frame.get("presence")))


def _read_perform(identifier: str, frame: Mapping[str, Any]) -> Perform:
    data = frame.get("data")
    if isinstance(data, str):
        try:
            data = _loads(data)
        except (ValueError, RecursionError):
            raise ProtocolError("the data of 'message' is not JSON") from None
    if not isinstance(data, dict):
        raise ProtocolError("the data of 'message' is not a JSON object")
    return Perform(identifier, data)


def _read_whisper(identifier: str, frame: Mapping[str, Any]) -> Whisper:
    return Whisper(identifier, encode(frame.get("data")))


def _read_presence(identifier: str, frame: Mapping[str, Any]) -> Presence:
    data = frame.get("data")
    return Presence(identifier, not (isinstance(data, dict) and data.get("return_records") is False))


_READERS: Mapping[str, Callable[[str, Mapping[str, Any]], AnyCommand]] = {
    "subscribe": _read_subscribe,
    "unsubscribe": lambda identifier, _: Unsubscribe(identifier),
    "message": _read_perform,
    "history": lambda identifier, frame: History(identifier, _history(frame.get("history"))),
    "whisper": _read_whisper,
    "join": lambda identifier, frame: Join(identifier, _claim(frame.get("presence"))),
    "leave": lambda identifier, _: Leave(identifier),
    "presence": _read_presence,
}
