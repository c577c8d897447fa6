"""Tokens for tests, and the scopes of handshakes that contain them."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt

SECRET = "a secret for the tests of tokens, of 32 bytes or more" * 2


def sign(key: Any = SECRET, algorithm: Any = "HS256", headers: Any = None, **claims: Any) -> str:
    """Return a token. The claim `ext` is encoded as JSON unless it is a string."""
    if "ext" in claims and not isinstance(claims["ext"], str):
        claims["ext"] = json.dumps(claims["ext"])
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers)


def after(seconds: float) -> int:
    """Return the time this many seconds from now, as an integer for a claim."""
    return int(time.time() + seconds)


def handshake(token: str = "", **more: Any) -> dict[str, Any]:
    """Return the scope of a handshake, with a token in the query."""
    query = f"jid={token}" if token else ""
    scope = {"type": "websocket", "path": "/cable", "headers": [], "subprotocols": [], "query_string": query.encode()}
    return {**scope, **more}
