"""Converts bodies of requests to entries of a stream, and entries to bodies of responses. It does no I/O.

An entry is a dict that the store keeps as JSON. Its key `n` is its number, from 1. An entry with data has one of
the keys `text`, `base64` and `json`. `json` is a list of JSON values, each as a string. The entry that closes the
stream has the key `end`. A body that is too large for one entry becomes several entries.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from reliable_cable.protocol.commands import refuse_constant

JSON_TYPE: Final = "application/json"
DEFAULT_TYPE: Final = "application/octet-stream"

#: The number of bytes of an entry that are reserved for everything except its data.
OVERHEAD: Final = 256

_TYPE: Final = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+", re.ASCII)
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_LINE_END: Final = re.compile(r"\r\n|\r|\n")


class InvalidBody(Exception):
    """Raised for a body that cannot be appended. The text of the error is for the client."""


class BodyTooLarge(InvalidBody):
    """Raised for a JSON value that is too large for one entry."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The data of one entry.

    Args:
        number: the number of the entry, from 1.
        data: the bytes, or `b""` for an entry with JSON values.
        values: the JSON values, each as a string.
        end: whether the stream was closed with this entry.
    """

    number: int
    data: bytes = b""
    values: tuple[str, ...] = ()
    end: bool = False

    @property
    def has_data(self) -> bool:
        """Whether there are data or values. An entry that only closes the stream has none."""
        return bool(self.data or self.values)


def media_type(content_type: str) -> str:
    """Return the type and subtype of a content type, in lower case; `""` if it is not valid."""
    found = content_type.partition(";")[0].strip().lower()
    return found if _TYPE.fullmatch(found) else ""


def is_json(content_type: str) -> bool:
    """Return whether a stream with this content type consists of JSON values."""
    return media_type(content_type) == JSON_TYPE


def is_text(content_type: str) -> bool:
    """Return whether server-sent events contain data of this content type as text, not as base64."""
    return is_json(content_type) or media_type(content_type).startswith("text/")


# -- entries ----------------------------------------------------------------------------------------------------------


def pack(body: bytes, content_type: str, limit: int) -> list[dict[str, Any]]:
    """Return the entries for a body, without their numbers.

    Args:
        body: the body of a request.
        content_type: the content type of the stream.
        limit: the maximum size of an entry in bytes, as JSON.

    Raises:
        InvalidBody: the stream consists of JSON values, and the body is not JSON, or has a value that is too large.
    """
    if is_json(content_type):
        return [{"json": list(values)} for values in _batches(split_json(body), limit - OVERHEAD)]
    size = (limit - OVERHEAD) * 3 // 4 - 4
    return [_encode(part) for part in _parts(body, size)]


def unpack(entry: Any) -> Piece | None:
    """Return the data of an entry; None if the entry does not have the format that this module describes."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("n"), int):
        return None
    data = entry["text"].encode() if "text" in entry else base64.b64decode(entry.get("base64", ""))
    return Piece(entry["n"], data, tuple(entry.get("json", ())), bool(entry.get("end")))


def repack(piece: Piece) -> dict[str, Any]:
    """Return an entry with the data of an entry of another stream, but without a number."""
    return {"json": list(piece.values)} if piece.values else _encode(piece.data)


def cut(piece: Piece, size: int) -> Piece:
    """Return the first bytes or JSON values of an entry.

    Args:
        piece: the data of the entry.
        size: the number of bytes or values.

    Raises:
        InvalidBody: the entry has fewer bytes or values.
    """
    if size > len(piece.values or piece.data):
        raise InvalidBody("The Stream-Fork-Sub-Offset is beyond the end of the data that follow the offset.")
    return replace(piece, data=piece.data[:size], values=piece.values[:size])


def _encode(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        pass
    else:
        if len(json.dumps(text)) <= len(data) * 4 // 3:
            return {"text": text}
    return {"base64": base64.b64encode(data).decode()}


def _parts(body: bytes, size: int) -> Iterable[bytes]:
    """Split a body into parts of at most `size` bytes. Characters in UTF-8 are not split."""
    begin = 0
    while begin < len(body):
        end = min(begin + size, len(body))
        while end < len(body) and end > begin + size - 3 and body[end] & 0xC0 == 0x80:
            end -= 1
        yield body[begin:end]
        begin = end


def _batches(values: Iterable[str], limit: int) -> Iterable[list[str]]:
    """Group JSON values into entries."""
    batch: list[str] = []
    total = 0
    for value in values:
        size = len(json.dumps(value)) + 2
        if size > limit:
            raise BodyTooLarge(f"A JSON value has {size} bytes as a text; {limit} are allowed (MAX_BROADCAST_SIZE).")
        if batch and total + size > limit:
            yield batch
            batch, total = [], 0
        batch.append(value)
        total += size
    if batch:
        yield batch


# -- JSON -------------------------------------------------------------------------------------------------------------


def _no_number(text: str) -> int:
    """Replace `int` and `float` in the decoder, which only checks numbers. The text of a number is stored unchanged."""
    return 0


_decoder: Final = json.JSONDecoder(parse_int=_no_number, parse_float=_no_number, parse_constant=refuse_constant)


def split_json(body: bytes) -> list[str]:
    """Return the JSON values in a body as strings: the items of an array, or the only value.

    Raises:
        InvalidBody: the body is not JSON.
    """
    try:
        text = body.decode()
        begin = _skip(text, 0)
        if text[begin : begin + 1] != "[":
            value, end = _value(text, begin)
            values = [value]
        else:
            values, end = _items(text, begin + 1)
        if end != len(text):
            raise ValueError("There is text after the value.")
    except (ValueError, RecursionError):
        raise InvalidBody("The body must be JSON.") from None
    return values


def _items(text: str, at: int) -> tuple[list[str], int]:
    """Return the items of an array as JSON texts, and the index of the next character that is not white space.

    Args:
        text: the text that contains the array.
        at: the index after the opening bracket.
    """
    values: list[str] = []
    at = _skip(text, at)
    if text[at : at + 1] == "]":
        return values, _skip(text, at + 1)
    while True:
        value, at = _value(text, at)
        values.append(value)
        after, at = text[at : at + 1], _skip(text, at + 1)
        if after == "]":
            return values, at
        if after != ",":
            raise ValueError("A comma is missing.")


def _value(text: str, at: int) -> tuple[str, int]:
    """Return the value at an index as a string, and the index of the next character that is not white space."""
    _, end = _decoder.raw_decode(text, at)
    return text[at:end], _skip(text, end)


def _skip(text: str, at: int) -> int:
    """Return the index of the first character at or after `at` that is not white space."""
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


# -- responses --------------------------------------------------------------------------------------------------------


def join(pieces: Sequence[Piece], content_type: str) -> bytes:
    """Return the body of a response with the data of entries."""
    if is_json(content_type):
        return f"[{','.join(value for piece in pieces for value in piece.values)}]".encode()
    return b"".join(piece.data for piece in pieces)


def event(name: str, text: str) -> bytes:
    """Return a server-sent event. A text with several lines becomes several `data` fields."""
    # Parsers remove one space after the colon, so a line that begins with a space needs another one.
    lines = "".join(f"data:{' ' if line.startswith(' ') else ''}{line}\n" for line in _LINE_END.split(text))
    return f"event: {name}\n{lines}\n".encode()


def data_event(pieces: Sequence[Piece], content_type: str) -> bytes:
    """Return the server-sent event with the data of entries."""
    body = join(pieces, content_type)
    return event("data", body.decode(errors="replace") if is_text(content_type) else base64.b64encode(body).decode())
