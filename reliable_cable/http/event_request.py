"""Parses the query strings, headers and bodies of the requests for server-sent events."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPMethod, HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from reliable_cable.conf import get_settings
from reliable_cable.exceptions import ProtocolError
from reliable_cable.protocol import commands, messages
from reliable_cable.protocol.event_ids import MAX_STREAMS, EventPositions, parse_id
from reliable_cable.protocol.events import Event, FrameEvent, RawEvent, RawFrameEvent

from .core import Refusal

#: The maximum size of the body of a POST, in bytes. AnyCable has the same limit.
MAX_BODY_SIZE: Final = 64 * 1024

#: The query parameters that subscribe to a built-in channel. For each parameter: the name of the channel, and the key
#: in the identifier that gets the value of the parameter.
_STREAM_PARAMETERS: Final = {
    "stream": ("$pubsub", "stream_name"),
    "signed_stream": ("$pubsub", "signed_stream_name"),
    "turbo_signed_stream_name": ("Turbo::StreamsChannel", "signed_stream_name"),
}
_TRUE: Final = ("1", "t", "true", "y")
_SECONDS: Final = re.compile("[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class EventRequest:
    """A parsed request for server-sent events.

    Args:
        frames: the commands with which a WebSocket client would make the same request, as frames of the protocol.
        identifiers: the identifiers of the subscriptions that these commands create.
        form: the class of the events to send, which decides their format.
        resumed: the positions in the id of the last event that the reader has received.
    """

    frames: Sequence[str]
    identifiers: Sequence[str]
    form: type[Event]
    resumed: EventPositions


def read_request(method: str, query_string: bytes, last_event_id: str, body: bytes) -> EventRequest:
    """Parse a request for server-sent events.

    Args:
        method: GET or POST.
        query_string: the part of the URL after the question mark.
        last_event_id: the header `Last-Event-ID`, or `""` if there is none.
        body: the body of a POST. The body of a GET is ignored.

    Raises:
        Refusal: the request is not valid.
    """
    query = parse_qsl(query_string.decode("latin-1"), errors="replace")
    values = dict(query)
    raw = values.get("raw", "").lower() in _TRUE
    resumed = parse_id(last_event_id or values.get("last_event_id", ""))
    if method == HTTPMethod.POST:
        form: type[Event] = RawFrameEvent if raw else FrameEvent
        requested = list(_commands_in(body))
    else:
        form = RawEvent if raw else Event
        since = _read_since(values.get("history_since", ""))
        requested = [{"command": "subscribe", "identifier": each, **since} for each in _identifiers_in(query)]
    limit = get_settings().max_identifier_size
    frames, identifiers = [], []
    for command in requested:
        frame = messages.dumps(command)
        try:
            parsed = commands.parse(frame, limit)
            if isinstance(parsed, commands.Subscribe):
                commands.parse_identifier(parsed.identifier)
                identifiers.append(parsed.identifier)
        except ProtocolError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"A command is not valid: {error}.") from None
        frames.append(frame)
    if not identifiers:
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            "The request has no subscription. GET needs 'channel', 'identifier', 'stream' or 'signed_stream' in the "
            "query. POST needs a command 'subscribe' in the body.",
        )
    if len(set(identifiers)) > MAX_STREAMS:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"The request has more than {MAX_STREAMS} subscriptions.")
    return EventRequest(frames, identifiers, form, resumed)


def _identifiers_in(query: Sequence[tuple[str, str]]) -> Iterator[str]:
    seen = set()
    for name, value in query:
        if name == "identifier":
            identifier = value
        elif name == "channel":
            identifier = messages.dumps({"channel": value})
        elif name in _STREAM_PARAMETERS:
            channel, param = _STREAM_PARAMETERS[name]
            identifier = messages.dumps({"channel": channel, param: value})
        else:
            continue
        if identifier not in seen:
            seen.add(identifier)
            yield identifier


def _read_since(text: str) -> dict[str, Any]:
    if not text:
        return {}
    if not _SECONDS.fullmatch(text):
        raise Refusal(HTTPStatus.BAD_REQUEST, "'history_since' must be a time in whole seconds since 1970.")
    return {"history": {"since": int(text)}}


def _commands_in(body: bytes) -> Iterator[dict[str, Any]]:
    """Yield the commands from a body that contains one JSON object per line."""
    if len(body) > MAX_BODY_SIZE:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has more than {MAX_BODY_SIZE} bytes.")
    for number, line in enumerate(body.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            commands.parse(line.decode(), get_settings().max_identifier_size)
            command = json.loads(line)
        except (UnicodeDecodeError, ProtocolError) as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"Line {number} of the body is not a command: {error}.") from None
        yield command
