"""Parses the headers and the query of requests for durable streams."""

from __future__ import annotations

import random
import re
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest

from reliable_cable.http.core import Refusal
from reliable_cable.runs.durable.appending import Append, Producer
from reliable_cable.runs.durable.forking import Fork
from reliable_cable.runs.durable.framing import DEFAULT_TYPE, media_type
from reliable_cable.runs.durable.offsets import NOW, START, ForeignOffset, InvalidOffset, parse_offset
from reliable_cable.runs.durable.storage import Creation
from reliable_cable.runs.durable_models import MAX_NAME_LENGTH, MAX_SEQUENCE_LENGTH, MAX_TYPE_LENGTH, DurableStream

from .requests import MAX_ID_LENGTH, invalid, is_storable

LONG_POLL: Final = "long-poll"
SSE: Final = "sse"

#: The path segments that the name of a stream must not contain. The protocol reserves `__ds`.
RESERVED: Final = frozenset(("__ds", ".", ".."))

#: The maximum epoch and sequence number of a producer. JavaScript can represent them exactly.
MAX_NUMBER: Final = 2**53 - 1
_NUMBER: Final = re.compile(r"[0-9]{1,16}", re.ASCII)
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,14}", re.ASCII)
_TTL: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_FIRST_YEAR: Final = 1970
_LAST_YEAR: Final = 9998

#: The value of `Stream-Cursor` is the number of intervals since this time, which is in seconds since 1970.
_CURSOR_EPOCH: Final = 1728432000
_CURSOR_INTERVAL: Final = 20
_CURSOR: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
#: If a client has sent a value that is not below the current one, the next value is the client's value plus a random
#: number from 1 to this maximum.
_CURSOR_JITTER: Final = 3600 // _CURSOR_INTERVAL


def check_name(name: str) -> None:
    """Check the name of a stream.

    Raises:
        Refusal: no stream can have this name.
    """
    parts = name.split("/")
    if not is_storable(name, MAX_NAME_LENGTH) or RESERVED & set(parts):
        raise Refusal(HTTPStatus.NOT_FOUND, "There is no such stream.")


def parse_creation(request: HttpRequest) -> Creation:
    """Parse the headers of a request to create a stream. By default, a fork has the content type of its source.

    Raises:
        Refusal: a header is not valid.
    """
    default = "" if "Stream-Forked-From" in request.headers else DEFAULT_TYPE
    content_type = request.headers.get("Content-Type", "").strip() or default
    if (content_type and not media_type(content_type)) or len(content_type) > MAX_TYPE_LENGTH:
        raise invalid("The header Content-Type must be a content type.")
    ttl = request.headers.get("Stream-TTL")
    expires_at = request.headers.get("Stream-Expires-At")
    if ttl is not None and expires_at is not None:
        raise invalid("A request can have only one of the headers Stream-TTL and Stream-Expires-At.")
    if ttl is not None and not _TTL.fullmatch(ttl):
        raise invalid("The header Stream-TTL must be a number of seconds, without a sign or leading zeros.")
    return Creation(
        content_type,
        None if ttl is None else int(ttl),
        None if expires_at is None else _time(expires_at),
        closes(request),
    )


def parse_fork(request: HttpRequest, name: str) -> Fork | None:
    """Parse the headers of a request to fork a stream. Return None if the request does not fork one.

    Args:
        request: the request.
        name: the name of the new stream, which is the end of the path of the request.

    Raises:
        Refusal: a header is not valid.
    """
    source = request.headers.get("Stream-Forked-From", "").strip()
    offset = request.headers.get("Stream-Fork-Offset", "").strip()
    size = request.headers.get("Stream-Fork-Sub-Offset", "").strip()
    if not source and (offset or size):
        raise invalid("The headers Stream-Fork-Offset and Stream-Fork-Sub-Offset need Stream-Forked-From.")
    if size and not _SIZE.fullmatch(size):
        raise invalid("The header Stream-Fork-Sub-Offset must be a number, without a sign or leading zeros.")
    if not source:
        return None
    # The header has the path of a URL of this server, or only the name of a stream after a slash.
    source = unquote(source).removeprefix(request.path.removesuffix(name)).removeprefix("/")
    check_name(source)
    return Fork(source, offset, int(size or 0))


def _time(text: str) -> datetime:
    try:
        if _TIME.fullmatch(text):
            moment = datetime.fromisoformat(text.upper()).astimezone(UTC)
            # Databases and time zones cannot represent the times near the limits of `datetime`.
            if _FIRST_YEAR <= moment.year <= _LAST_YEAR:
                return moment
    except (ValueError, OverflowError):
        pass
    raise invalid("The header Stream-Expires-At must be a time as in RFC 3339, such as 2027-01-31T12:00:00Z.")


def closes(request: HttpRequest) -> bool:
    """Return whether a request closes the stream."""
    return request.headers.get("Stream-Closed", "").strip().lower() == "true"


def parse_append(request: HttpRequest, body: bytes) -> Append:
    """Parse the headers of a request to append to a stream, or to close it.

    Raises:
        Refusal: a header is not valid, or the body is empty.
    """
    content_type = request.headers.get("Content-Type", "")
    close = closes(request)
    sequence = request.headers.get("Stream-Seq", "")
    if not body and not close:
        raise invalid("The body is empty.")
    if body and not media_type(content_type):
        raise invalid("The header Content-Type must be the content type of the stream.")
    if not is_storable(sequence, MAX_SEQUENCE_LENGTH):
        raise invalid(f"The header Stream-Seq must have at most {MAX_SEQUENCE_LENGTH} characters.")
    return Append(bool(body), content_type, close, sequence, _producer(request))


def _producer(request: HttpRequest) -> Producer | None:
    given = [request.headers.get(f"Producer-{name}") for name in ("Id", "Epoch", "Seq")]
    if given == [None, None, None]:
        return None
    name, epoch, sequence = given
    if name is None or epoch is None or sequence is None:
        raise invalid("The headers Producer-Id, Producer-Epoch and Producer-Seq must be used together.")
    if not name or not is_storable(name):
        raise invalid(f"The header Producer-Id must have 1 to {MAX_ID_LENGTH} characters.")
    return Producer(name, _number(epoch, "Producer-Epoch"), _number(sequence, "Producer-Seq"))


def _number(text: str, header: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > MAX_NUMBER:
        raise invalid(f"The header {header} must be a whole number from 0 to {MAX_NUMBER}.")
    return int(text)


# -- reading ----------------------------------------------------------------------------------------------------------


def parse_reading(request: HttpRequest) -> str:
    """Check the query of a request that reads a stream. Return the offset.

    Raises:
        Refusal: a parameter is not valid, or the server cannot stream.
    """
    live, given = request.GET.get("live", ""), request.GET.getlist("offset")
    if live not in ("", LONG_POLL, SSE):
        raise invalid(f"The parameter live must be {LONG_POLL!r} or {SSE!r}.")
    if live and not given:
        raise invalid("A request with the parameter live needs the parameter offset.")
    if len(given) > 1:
        raise invalid("A request can have only one parameter offset.")
    if live and not isinstance(request, ASGIRequest):
        raise Refusal(HTTPStatus.NOT_IMPLEMENTED, "The parameter live needs an ASGI server. This is WSGI.")
    return given[0] if given else START


def parse_position(offset: str, row: DurableStream) -> int | None:
    """Return the number of entries before an offset; None for the end of the stream.

    Raises:
        Refusal: the offset is not valid, or belongs to data that were deleted.
    """
    if offset == START:
        return 0
    if offset == NOW:
        return None
    try:
        count = parse_offset(offset, row.generation, row.ancestors)
    except InvalidOffset:
        raise invalid("The parameter offset must be an offset of the stream, -1 or now.") from None
    except ForeignOffset:
        count = row.count + 1
    if count > row.count:
        raise Refusal(HTTPStatus.GONE, "The data at this offset were deleted. Read from the beginning: offset=-1.")
    return count


def next_cursor(request: HttpRequest) -> str:
    """Return the `Stream-Cursor` of Durable Streams for the response to a request with `live`.

    It is greater than the `cursor` in the request, so that the URL of the next request is new to caches.
    """
    current = int(time.time() - _CURSOR_EPOCH) // _CURSOR_INTERVAL
    given = request.GET.get("cursor", "")
    if _CURSOR.fullmatch(given) and int(given) >= current:
        current = int(given) + random.randint(1, _CURSOR_JITTER)  # noqa: S311 - nobody has to guess it
    return str(current)
