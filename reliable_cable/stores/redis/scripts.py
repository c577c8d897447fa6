"""The texts of the Lua scripts: one operation a file, in `lua/`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

LUA = Path(__file__).parent / "lua"


@cache
def script_text(name: str) -> str:
    """Return a Lua script, preceded by the functions that all scripts share, and those of its family."""
    family = ["presence_prelude"] if name.startswith("presence_") else []
    return "".join((LUA / f"{part}.lua").read_text() for part in ("prelude", *family, name))
