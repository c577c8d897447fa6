"""`RedisServer` restarts, loses data and replicates exactly as a test wants."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.fixtures import REDIS
from tests.support.redis import RedisServer, find_binaries


@pytest.fixture(params=REDIS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that only one test uses."""
    binary = next(binary for binary in find_binaries() if binary.name == request.param)
    with RedisServer(tmp_path / "redis", binary) as redis_server:
        yield redis_server


def run_id(server: RedisServer) -> str:
    return str(server.cli("INFO", "server")["run_id"])


@pytest.mark.parametrize("kill", [False, True])
def test_a_restart_keeps_the_port_and_the_data_and_changes_the_run_id(server: RedisServer, kill: bool) -> None:
    server.cli("SET", "key", "value")
    before = (server.port, run_id(server))
    server.restart(kill=kill)
    assert server.cli("GET", "key") == "value"
    assert server.port == before[0]
    assert run_id(server) != before[1]


@pytest.mark.redis
def test_a_server_without_an_append_only_file_keeps_its_data_when_it_is_stopped(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", options={"appendonly": "no"}) as server:
        server.cli("SET", "key", "value")
        server.restart()
        assert server.cli("GET", "key") == "value"


def test_a_restart_from_an_older_snapshot_has_its_data_and_persists_later_writes(server: RedisServer) -> None:
    server.cli("SET", "key", "old")
    snapshot = server.snapshot()
    server.cli("SET", "key", "new")
    server.restart_from(snapshot)
    assert server.cli("GET", "key") == "old"
    server.cli("SET", "key", "newer")
    server.restart(kill=True)
    assert server.cli("GET", "key") == "newer"


def test_an_empty_restart_and_a_flush_delete_all_data(server: RedisServer) -> None:
    server.cli("SET", "key", "value")
    server.restart_empty()
    assert server.cli("DBSIZE") == 0
    server.cli("SET", "key", "value")
    server.flushall()
    assert server.cli("DBSIZE") == 0


def test_a_paused_server_responds_only_after_the_pause(server: RedisServer) -> None:
    began = time.monotonic()
    server.pause(1)
    assert server.cli("PING") is True
    assert time.monotonic() - began > 0.9


@pytest.mark.redis
def test_options_are_passed_to_the_server(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", options={"maxmemory": "8mb"}) as server:
        assert server.cli("CONFIG GET", "maxmemory") == {"maxmemory": str(8 * 1024 * 1024)}


def test_a_server_listens_only_on_the_loopback_interface(server: RedisServer) -> None:
    assert server.cli("CONFIG GET", "bind")["bind"] == "127.0.0.1"


def test_each_test_has_its_own_prefix_on_the_shared_server(
    redis_server: RedisServer, redis_url: str, key_prefix: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{key_prefix}:key", "value")
    assert redis_server.cli("GET", f"{key_prefix}:key") == "value"


def test_a_replica_has_the_data_of_its_primary_also_after_its_promotion(server: RedisServer, tmp_path: Path) -> None:
    server.cli("SET", "key", "old")
    with RedisServer(tmp_path / "replica", server.binary) as replica:
        replica.follow(server)
        server.cli("SET", "key", "new")
        server.wait_for_replicas()
        assert replica.cli("GET", "key") == "new"
        replica.promote()
        replica.cli("SET", "key", "newer")
        assert (server.cli("GET", "key"), replica.cli("GET", "key")) == ("new", "newer")
