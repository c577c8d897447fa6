"""The content of an answer: its text, and its other parts in their order.

A part is a dict with a `type`. `at` is the number of characters of the text before the part. These types are used here;
others are stored and sent, too, and readers skip what they do not know.

- `reasoning`: `text`, which grows while it is the last part
- `tool-call`: `id`, `name`, `input`
- `tool-result`: `id`, `output`
- `source`: `url`, `title`
- `data`: `name`, `data`
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from reliable_cable.validation import copy_json

REASONING: Final = "reasoning"

#: The maximum number of bytes of a part, as JSON.
MAX_PART_SIZE: Final = 256 * 1024

#: PostgreSQL stores no NUL, and lone surrogates cannot be encoded.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Return a text in which the characters that cannot be stored or sent are replaced by U+FFFD."""
    return text if text.isascii() and "\x00" not in text else _UNSTORABLE.sub("\ufffd", text)


def check_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a part that can be stored and sent.

    Raises:
        TypeError: it has no `type`, or is not a JSON value.
        ValueError: it is larger than `MAX_PART_SIZE`, or is nested too deeply.
    """
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str) or not part["type"]:
        raise TypeError(f"A part must be a dict with a type, such as {{'type': 'source', …}}; not {part!r:.200}.")
    value, size = copy_json(dict(part))
    copied: dict[str, Any] = _clean(value)
    if size > MAX_PART_SIZE:
        raise ValueError(f"A part has {size} bytes; at most {MAX_PART_SIZE} are allowed.")
    return copied


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): _clean(item) for key, item in value.items()}
    return value


class Content:
    """The content of an answer that is being written.

    Args:
        text: the text so far.
        parts: the other parts so far.
    """

    __slots__ = ("_pieces", "length", "parts")

    def __init__(self, text: str = "", parts: list[dict[str, Any]] | None = None) -> None:
        self._pieces = [text] if text else []
        #: The number of characters of the text.
        self.length = len(text)
        self.parts = [] if parts is None else parts

    @property
    def text(self) -> str:
        """The text so far."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def add_text(self, text: str) -> None:
        """Add text to the end."""
        self._pieces.append(text)
        self.length += len(text)

    def add_part(self, part: Mapping[str, Any]) -> None:
        """Add a part, or more text to the reasoning that is the last part at the end of the text."""
        last = self.parts[-1] if self.parts else None
        if last is not None and part["type"] == REASONING == last["type"] and last["at"] == self.length:
            last["text"] += part["text"]
        else:
            self.parts.append({**part, "at": self.length})
