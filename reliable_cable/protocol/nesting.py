"""Limits how deeply JSON texts may be nested.

Python's decoder and encoder fail at different depths, which depend on the version of Python and on the call stack.
Without a limit, one process could accept a value that another process cannot decode. The other process would then also
fail for all messages that are encoded or read together with this value.
"""

from typing import Final

#: The maximum number of levels of arrays and objects in a JSON text. `[]` has one level.
MAX_DEPTH: Final = 64

#: The description of a text that is nested too deeply, for error messages.
TOO_DEEP: Final = f"more than {MAX_DEPTH} levels of arrays and objects"

#: The length of the shortest JSON text that is nested too deeply, which is `[[…]]`.
SHORTEST_TOO_DEEP: Final = 2 * (MAX_DEPTH + 1)

_OPENING: Final = b"[{"
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def is_too_deep(text: str) -> bool:
    """Return whether a JSON text has more than `MAX_DEPTH` levels.

    If the text is not valid JSON, the result may be wrong. A wrong False is harmless, because `json.loads` finds the
    error before it reaches so many levels.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in _brackets(text):
        if bracket not in _OPENING:
            depth -= 1
        elif depth == MAX_DEPTH:
            return True
        else:
            depth += 1
    return False


def _brackets(text: str) -> bytes:
    """Return the brackets of a JSON text, without those inside strings."""
    unescaped = text.encode(errors="surrogatepass").replace(rb"\\", b"").replace(rb"\"", b"")
    return b"".join(unescaped.split(b'"')[::2]).translate(None, _NO_BRACKETS)
