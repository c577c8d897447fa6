"""The fixtures of the integration tests, which run against real servers."""

from __future__ import annotations

from tests.support.fixtures import beside, kind, postgres_host, postgres_servers, server, servers, strict
from tests.support.projects import environments

__all__ = ["beside", "environments", "kind", "postgres_host", "postgres_servers", "server", "servers", "strict"]
