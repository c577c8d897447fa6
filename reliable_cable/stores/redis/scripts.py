"""The source code of the Lua scripts. Each file in `lua/` contains one operation."""

import hashlib
from functools import cache
from pathlib import Path

LUA = Path(__file__).parent / "lua"


@cache
def script_text(name: str) -> str:
    """Return the source code of a Lua script. It begins with the functions that scripts share."""
    family = ["presence_prelude"] if name.startswith("presence_") else []
    return "".join((LUA / f"{part}.lua").read_text() for part in ("prelude", *family, name))


@cache
def script_sha(name: str) -> str:
    """Return the SHA-1 of a Lua script, by which Redis identifies it."""
    return hashlib.sha1(script_text(name).encode(), usedforsecurity=False).hexdigest()
