"""Tenants with django-tenants, which gives each tenant a schema of PostgreSQL: two tenants, each with a user 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import django
import pytest

from tests.support.postgres import find_postgres, running_postgres
from tests.support.redis import find_binaries
from tests.support.server import PATIENCE, ROOT

pytest.importorskip(
    "django_tenants", reason=f"django-tenants is not installed; it may not support Django {django.get_version()}"
)
pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module", params=["database", pytest.param("redis", marks=pytest.mark.redis)])
def seen(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The messages and results that the clients of both tenants receive, by scenario. Lists have a value per tenant."""
    binaries = find_postgres()
    assert binaries is not None
    with running_postgres(binaries) as host:
        variables = {"CABLE_TEST_POSTGRES": host}
        if request.param == "redis":
            variables["CABLE_TEST_REDIS"] = request.getfixturevalue("redis_pool").get(find_binaries()[0].name).url
        done = subprocess.run(
            [sys.executable, "-m", "tests.integration.tenants"],
            cwd=ROOT,
            env={**os.environ, **variables},
            check=False,
            timeout=PATIENCE * 4,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_each_handler_finds_the_rows_of_its_tenant(seen: dict[str, Any]) -> None:
    assert seen["users"] == ["user-of-a", "user-of-b"]


def test_broadcasts_of_views_and_handlers_reach_their_tenant(seen: dict[str, Any]) -> None:
    assert seen["broadcasts"] == [["a handler of a", "a view of a"], ["a handler of b", "a view of b"]]


def test_each_tenant_has_its_own_members(seen: dict[str, Any]) -> None:
    assert seen["members"] == [["user-of-a"], ["user-of-b"]]


def test_a_session_is_not_restored_in_another_tenant(seen: dict[str, Any]) -> None:
    assert seen["restored by another tenant"] is False


def test_a_logout_closes_the_connections_of_its_tenant(seen: dict[str, Any]) -> None:
    assert seen["logout"] == {"type": "disconnect", "reason": "remote", "reconnect": True}
    assert seen["logout of another tenant"] == {"type": "pong"}


def test_a_new_password_closes_the_connections_of_its_tenant(seen: dict[str, Any]) -> None:
    assert seen["new password"] == {"type": "disconnect", "reason": "remote", "reconnect": True}
    assert seen["new password in another tenant"] == {"type": "pong"}


def test_a_revocation_ends_subscriptions_of_its_tenant(seen: dict[str, Any]) -> None:
    assert seen["revocation"] == {"type": "revoked", "reason": "revoked"}
    assert seen["revocation of another tenant"] == {"type": "pong"}


def test_a_host_name_without_a_tenant_is_refused(seen: dict[str, Any]) -> None:
    assert seen["unknown host"][0] is False
