"""HTTP endpoints: broadcasts, disconnects and presence for other programs, as in AnyCable, and health checks."""

from .asgi import CableHTTP

__all__ = ["CableHTTP"]
