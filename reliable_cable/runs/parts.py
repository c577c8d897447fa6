"""The content of an answer: its text, and a list of other parts, such as tool calls.

A part is a dict with a `type`. Its key `at` is the number of characters of the text that precede the part. The types
below are used by this package, with these keys. Parts of other types are stored and sent, too. Readers skip the types
that they do not know.

- `reasoning`: `text`; the text of reasoning that directly follows is appended to it
- `tool-call`: `id`, `name`, `input`; optionally `dynamic`
- `tool-result`: `id`, `output`
- `source`: `url`, `title`
- `data`: `name`, `data`; optionally `id`
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from reliable_cable.conf import get_settings
from reliable_cable.validation import copy_json

REASONING: Final = "reasoning"

#: The maximum size of a part, in bytes of JSON.
MAX_PART_SIZE: Final = 256 * 1024

#: The maximum size, in bytes, of an event without its content.
EVENT_SIZE: Final = 100

#: Characters that cannot be stored or sent: PostgreSQL stores no NUL, and UTF-8 cannot encode lone surrogates.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Return a string, with U+FFFD in place of the characters that cannot be stored or sent."""
    return text if text.isascii() and "\x00" not in text else _UNSTORABLE.sub("\ufffd", text)


def check_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a part that can be stored and sent.

    Raises:
        TypeError: the part has no `type`, or is not a JSON value.
        ValueError: the part is larger than `MAX_PART_SIZE` or `MAX_BROADCAST_SIZE`, or is nested too deeply.
    """
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str) or not part["type"]:
        # The message does not contain the part, because logs must not contain answers.
        problem = "this dict has no type" if isinstance(part, Mapping) else f"not a {type(part).__name__}"
        raise TypeError(f"A part must be a dict with a type, such as {{'type': 'source', …}}; {problem}.")
    copied, size = _clean_copy(part)
    limit = min(MAX_PART_SIZE, get_settings().max_broadcast_size) - EVENT_SIZE
    if size > limit:
        raise ValueError(f"A part has {size} bytes; at most {limit} are allowed.")
    return copied


def clean_dict(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a dict of JSON values that can be stored and sent. See `clean_text`.

    Raises:
        TypeError: a value is not a JSON value.
        ValueError: a number is not finite, or the values are nested too deeply.
    """
    return _clean_copy(value)[0]


def _clean_copy(value: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    try:
        copied, size = copy_json(dict(value))
    except RecursionError:
        raise ValueError("The values are nested too deeply.") from None
    return clean(copied), size


def clean(value: Any) -> Any:
    """Return a JSON value, with U+FFFD in its strings in place of the characters that cannot be stored or sent."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): clean(item) for key, item in value.items()}
    return value


class Content:
    """The content of an answer that is being written.

    Args:
        text: the text that was written before.
        parts: the other parts that were written before. The list is changed in place.
    """

    __slots__ = ("_pieces", "length", "parts")

    def __init__(self, text: str = "", parts: list[dict[str, Any]] | None = None) -> None:
        self._pieces = [text] if text else []
        #: The length of the text, in characters.
        self.length = len(text)
        self.parts = [] if parts is None else parts

    @property
    def text(self) -> str:
        """The text so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def add(self, item: str | Mapping[str, Any]) -> None:
        """Append to the text, or append a part. Reasoning that directly follows reasoning is joined to it."""
        if isinstance(item, str):
            self._pieces.append(item)
            self.length += len(item)
            return
        last = self.parts[-1] if self.parts else None
        if last is not None and item["type"] == REASONING == last["type"] and last["at"] == self.length:
            last["text"] += item["text"]
        else:
            self.parts.append({**item, "at": self.length})
