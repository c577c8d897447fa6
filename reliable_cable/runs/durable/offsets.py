"""The offsets of Durable Streams: strings that clients store and compare, but do not interpret.

An offset contains the generation of the stream and the number of entries before it. If a stream is deleted and created
again, it gets another generation. So an old offset is never applied to new data. A fork has its own generation, too. It
also accepts the offsets of its source, as far as the fork has the same entries.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Final

#: The offset before the first entry, and the offset after the last entry, as clients may send them.
START: Final = "-1"
NOW: Final = "now"

#: A generation that no stream of a client has. An offset of this generation with the number 0 is the beginning of
#: every stream.
ANY_GENERATION: Final = "0" * 16

#: The ancestors of a stream that is not a fork (see `parse_offset`).
NO_ANCESTORS: Final[Mapping[str, int]] = {}

_OFFSET: Final = re.compile(r"([0-9a-f]{16})_([0-9]{16})", re.ASCII)


class InvalidOffset(Exception):
    """Raised for a string that is not an offset."""


class ForeignOffset(Exception):
    """Raised for an offset of another generation, unless it is within the entries that a fork has copied."""


def new_generation() -> str:
    """Return a random generation for a new stream."""
    return f"1{secrets.token_hex(8)[1:]}"


def format_offset(generation: str, count: int) -> str:
    """Return the offset after a number of entries.

    Args:
        generation: the generation of the stream.
        count: the number of entries before the offset.
    """
    return f"{generation}_{count:016d}"


def parse_offset(text: str, generation: str, ancestors: Mapping[str, int] = NO_ANCESTORS) -> int:
    """Return the number of entries before an offset.

    Args:
        text: the offset as a client sent it, which is neither `START` nor `NOW`.
        generation: the generation of the stream.
        ancestors: the number of common entries, by the generation of each stream from which data were copied.

    Raises:
        InvalidOffset: the text is not an offset.
        ForeignOffset: the offset belongs to another generation, or is beyond the common entries.
    """
    found, count = split_offset(text)
    if found != generation and count > ancestors.get(found, 0 if found == ANY_GENERATION else -1):
        raise ForeignOffset
    return count


def split_offset(text: str) -> tuple[str, int]:
    """Return the generation in an offset, and the number of entries before it.

    Args:
        text: the offset as a client sent it.

    Raises:
        InvalidOffset: the text is not an offset.
    """
    match = _OFFSET.fullmatch(text)
    if match is None:
        raise InvalidOffset
    return match[1], int(match[2])
