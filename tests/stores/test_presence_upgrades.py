"""Presence in a Redis shared with servers of earlier releases, which do not know the keys `infos` and `queue`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.stores.presence.base import PresenceInfo
from reliable_cable.stores.presence.redis import RedisPresenceStore
from reliable_cable.stores.redis.keys import stream_tag
from tests.support.redis import RedisServer

from .conftest import Clock
from .presence import TTL, check_an_upgrade, left

pytestmark = pytest.mark.redis


@pytest.fixture
def store(redis_url: str, key_prefix: str) -> Iterator[RedisPresenceStore]:
    store = RedisPresenceStore(CableSettings(redis_url=redis_url, key_prefix=key_prefix))
    yield store
    store.close()


@pytest.fixture
def key(key_prefix: str) -> Callable[[str], str]:
    return lambda name: f"{stream_tag(key_prefix, 's')}:{name}"


def test_sessions_that_an_earlier_release_added_are_counted_and_leave(
    store: RedisPresenceStore, redis_server: RedisServer, key: Callable[[str], str]
) -> None:
    store.join("s", "phone", "1", "Ann")
    store.join("s", "desk", "1", "Anne")
    redis_server.cli("DEL", key("infos"), key("queue"))
    store.join("s", "pad", "1", "Anna")
    assert store.leave("s", "phone") == []
    assert store.leave("s", "desk") == []
    assert store.info("s") == PresenceInfo(1, {"1": "Anna"})
    assert store.leave("s", "pad") == [left("1", "Anna")]


def test_sessions_that_an_earlier_release_removed_are_not_shown(
    store: RedisPresenceStore, redis_server: RedisServer, key: Callable[[str], str]
) -> None:
    for session in ("phone", "desk", "pad"):
        store.join("s", session, "1", session)
    redis_server.cli("HDEL", key("sessions"), "desk")
    redis_server.cli("ZREM", key("expiries"), "desk")
    redis_server.cli("HSET", key("members"), '"1"', '2 1 "phone"')
    store.join("s", "desk", "2", "desk")
    store.leave("s", "phone")
    assert store.info("s").records == {"1": "pad", "2": "desk"}
    store.leave("s", "pad")
    store.leave("s", "desk")
    assert store.info("s").total == 0
    assert redis_server.cli("EXISTS", key("infos"), key("queue")) == 0


def test_members_that_joined_on_an_earlier_release_leave_only_after_a_time_in_which_they_could_be_refreshed(
    redis_url: str, redis_server: RedisServer, key_prefix: str, clock: Clock
) -> None:
    store = RedisPresenceStore(CableSettings(redis_url=redis_url, key_prefix=key_prefix, presence_ttl=TTL), clock=clock)
    check_an_upgrade(store, clock, lambda: redis_server.cli("DEL", f"{key_prefix}:presence-sweeps"))
    store.close()
