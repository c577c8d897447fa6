"""Finds payloads that cannot be sent. Clients drop a message that is falsy in JavaScript, without an error."""

from typing import Final

_FALSY: Final = frozenset({"null", "false", '""'})
_FIRST_OF_NUMBER: Final = frozenset("-0123456789")


def is_falsy(text: str) -> bool:
    """Return whether the value of a JSON text is falsy in JavaScript: null, false, the empty string, or zero.

    Zero has many spellings, such as `-0`, `0.00` and `0e5`. Numbers that are too small for a double, such as `1e-400`,
    are zero too.

    Args:
        text: JSON without white space around it.
    """
    return text in _FALSY or (text[:1] in _FIRST_OF_NUMBER and float(text) == 0)
