"""The Redis servers that tests start: each keeps, or loses, just what it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.fixtures import REDIS
from tests.support.redis import NO_RETRY, RedisServer, find_binaries


@pytest.fixture(params=REDIS)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of this test's own."""
    binary = next(binary for binary in find_binaries() if binary.name == request.param)
    with RedisServer(tmp_path / "redis", binary) as server:
        yield server


def run_id(server: RedisServer) -> str:
    return str(server.cli("INFO", "server")["run_id"])


@pytest.mark.parametrize("kill", [False, True])
def test_a_restart_keeps_port_and_data_but_not_the_run_id(own: RedisServer, kill: bool) -> None:
    own.cli("SET", "key", "value")
    before = (own.port, run_id(own))
    own.restart(kill=kill)
    assert own.cli("GET", "key") == "value"
    assert own.port == before[0]
    assert run_id(own) != before[1]


@pytest.mark.redis
def test_a_server_without_an_append_only_file_keeps_its_data_over_a_stop(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", options={"appendonly": "no"}) as server:
        server.cli("SET", "key", "value")
        server.restart()
        assert server.cli("GET", "key") == "value"


def test_an_older_snapshot_brings_back_what_it_had_and_is_persisted_again(own: RedisServer) -> None:
    own.cli("SET", "key", "old")
    snapshot = own.snapshot()
    own.cli("SET", "key", "new")
    own.restart_from(snapshot)
    assert own.cli("GET", "key") == "old"
    own.cli("SET", "key", "newer")
    own.restart(kill=True)
    assert own.cli("GET", "key") == "newer"


def test_an_empty_restart_and_a_flush_leave_nothing(own: RedisServer) -> None:
    own.cli("SET", "key", "value")
    own.restart_empty()
    assert own.cli("DBSIZE") == 0
    own.cli("SET", "key", "value")
    own.flushall()
    assert own.cli("DBSIZE") == 0


def test_a_paused_server_answers_nobody_until_the_pause_is_over(own: RedisServer) -> None:
    with redis.Redis(port=own.port, socket_timeout=0.1, retry=NO_RETRY) as impatient:
        assert impatient.ping()
        own.pause(1)
        with pytest.raises(redis.TimeoutError):
            impatient.ping()
    assert own.cli("PING") is True


@pytest.mark.redis
def test_options_are_handed_to_the_server(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", options={"maxmemory": "8mb"}) as server:
        assert server.cli("CONFIG", "GET", "maxmemory") == {"maxmemory": str(8 * 1024 * 1024)}


def test_it_listens_on_the_loopback_only(own: RedisServer) -> None:
    assert own.cli("CONFIG", "GET", "bind")["bind"] == "127.0.0.1"


def test_the_shared_server_serves_two_prefixes(redis_server: RedisServer, redis_url: str, key_prefix: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{key_prefix}:key", "value")
    assert redis_server.cli("GET", f"{key_prefix}:key") == "value"


def test_a_replica_has_what_its_primary_had_and_keeps_it_when_it_is_promoted(own: RedisServer, tmp_path: Path) -> None:
    own.cli("SET", "key", "old")
    with RedisServer(tmp_path / "replica", own.binary) as replica:
        replica.follow(own)
        own.cli("SET", "key", "new")
        own.wait_for_replicas()
        assert replica.cli("GET", "key") == "new"
        replica.promote()
        replica.cli("SET", "key", "newer")
        assert (own.cli("GET", "key"), replica.cli("GET", "key")) == ("new", "newer")
