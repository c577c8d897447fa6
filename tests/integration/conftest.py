"""The fixtures of the integration tests, which run against real servers."""

from __future__ import annotations

from tests.support.fixtures import beside, kind, server, servers, strict

__all__ = ["beside", "kind", "server", "servers", "strict"]
