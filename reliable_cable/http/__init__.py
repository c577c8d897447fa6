"""HTTP endpoints for broadcasts, disconnects, presence, server-sent events and health checks."""

from .asgi import CableHTTP

__all__ = ["CableHTTP"]
