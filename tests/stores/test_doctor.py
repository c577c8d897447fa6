"""`manage.py cable_doctor`, and the warning that a server logs when it starts."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings

from reliable_cable.consumer import get_hub
from reliable_cable.stores.engine import ENGINE_CLASSES
from reliable_cable.stores.redis.doctor import find_problems
from tests.benchmarks import subscribers
from tests.stores.conftest import until
from tests.support.redis import RedisServer

pytestmark = pytest.mark.redis


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server for this test only."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


def doctor(**settings: Any) -> str:
    """Return the output of `cable_doctor` with these settings."""
    out = io.StringIO()
    with override_settings(RELIABLE_CABLE=settings):
        call_command("cable_doctor", stdout=out, no_color=True)
    return out.getvalue()


def test_a_correct_redis_passes_and_delivers_the_test_message(redis: RedisServer) -> None:
    said = doctor(REDIS_URL=redis.url)
    place = f"Redis at 127.0.0.1:{redis.port}, database 0"
    assert f"streams: reliable_cable.stores.streams.redis.RedisStreamStore, {place}\n" in said
    assert "Presence is in the memory" not in said
    assert "A test message arrived" in said
    assert re.search(r"The clock of Redis is 0\.\d\d\d s (ahead of|behind) this host's\.", said)
    assert "Nothing is wrong." in said


def test_the_memory_engine_passes_too() -> None:
    said = doctor(ENGINE="memory")
    assert "Nothing is wrong." in said
    assert "clock" not in said, "it is this host's"
    assert "Streams are in the memory of each process." in said
    assert "Remove ENGINE, so that streams are in the database, or set REDIS_URL." in said


@pytest.mark.django_db(transaction=True)
def test_presence_in_memory_is_named_if_other_processes_can_read_the_streams() -> None:
    said = doctor(ENGINE={**ENGINE_CLASSES["database"], "presence": ENGINE_CLASSES["memory"]["presence"]})
    assert "presence: reliable_cable.stores.presence.memory.MemoryPresenceStore, memory of this process\n" in said
    assert "Presence is in the memory of each server process" in said
    assert "Remove ENGINE, so that members are in the database, or set REDIS_URL." in said
    assert "Presence is in the memory" not in doctor(ENGINE="memory")


def test_a_password_that_redis_does_not_expect_is_named(redis: RedisServer) -> None:
    url = redis.url.replace("redis://", "redis://:secret@")
    with pytest.raises(CommandError, match=r"Redis refused the user or the password in REDIS_URL: .*[^.]\.$"):
        doctor(REDIS_URL=url)


def test_a_redis_that_may_evict_keys_fails_with_a_remedy(redis: RedisServer) -> None:
    redis.cli("CONFIG", "SET", "maxmemory", "100mb")
    assert "Nothing is wrong." in doctor(REDIS_URL=redis.url), "noeviction is the default"
    redis.cli("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    with pytest.raises(CommandError, match="set maxmemory-policy to noeviction"):
        doctor(REDIS_URL=redis.url)


def test_a_replica_fails(redis: RedisServer, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "replica") as replica:
        replica.cli("REPLICAOF", "127.0.0.1", redis.port)
        with pytest.raises(CommandError, match="set REDIS_URL to the primary"):
            doctor(REDIS_URL=replica.url)


def test_a_redis_that_is_down_fails(redis: RedisServer) -> None:
    redis.kill()
    with pytest.raises(CommandError, match="cannot be reached"):
        doctor(REDIS_URL=redis.url)


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        (b"redis_version:6.0.16\r\nmaster_replid:1\r\n", "too old"),
        (b"redis_version:6.2.0\r\ncluster_enabled:1\r\nmaster_replid:1\r\n", "cluster"),
        (b"redis_version:6.2.0\r\n", "master_replid"),
        (b"# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.8\r\nmaster_replid:1\r\n", ""),
    ],
)
def test_old_versions_clusters_and_missing_fields_are_problems(info: bytes, problem: str) -> None:
    client = mock.Mock(run=mock.Mock(return_value=[info]))
    client.names.cluster = False
    assert [problem in found for found in find_problems(client)] == ([True] if problem else [])


async def test_a_server_warns_when_it_starts(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    redis.cli("CONFIG", "SET", "maxmemory", "100mb")
    redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with override_settings(RELIABLE_CABLE={"REDIS_URL": redis.url}):
        hub = get_hub()
        await until(lambda: "noeviction" in caplog.text)
        await hub.aclose()


async def test_the_cost_of_a_broadcast_in_redis_does_not_grow_with_its_subscribers(redis: RedisServer) -> None:
    with override_settings(RELIABLE_CABLE={"REDIS_URL": redis.url}):
        costs = await subscribers.measure(redis, (1, 100))
        await get_hub().aclose()
    one, many = costs[1], costs[100]
    assert many["commands"] < one["commands"] + 1
    assert many["bytes out"] < one["bytes out"] * 1.1
    assert many["bytes in"] < one["bytes in"] * 1.1
