"""HTTP endpoints for broadcasts, disconnects, presence, server-sent events, health checks and anycable-go's calls."""

from .asgi import CableHTTP

__all__ = ["CableHTTP"]
