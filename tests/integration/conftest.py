"""Integration tests run against real servers too."""

from __future__ import annotations

from tests.support.fixtures import beside, kind, server, servers, strict

__all__ = ["beside", "kind", "server", "servers", "strict"]
