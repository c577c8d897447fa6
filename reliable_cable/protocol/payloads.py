"""Finds payloads that are falsy in JavaScript. They cannot be sent, because clients drop them without an error."""

from typing import Final

_FALSY: Final = frozenset({"null", "false", '""'})
_FIRST_OF_NUMBER: Final = frozenset("-0123456789")


def is_falsy(text: str) -> bool:
    """Return whether a JSON text is null, false, the empty string or zero, which are falsy in JavaScript.

    Zero can be written in many ways, such as `-0`, `0.00` and `0e5`. Numbers that are too small for a double, such as
    `1e-400`, are zero too.

    Args:
        text: a JSON text that does not begin or end with white space.
    """
    return text in _FALSY or (text[:1] in _FIRST_OF_NUMBER and float(text) == 0)
