"""Token buckets in memory and in Redis give the same answers as `TokenBucket`, to which the tests pass the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliable_cable.concurrency.token_bucket import TokenBucket
from reliable_cable.conf import CableSettings, RateLimit
from reliable_cable.exceptions import StoreError
from reliable_cable.stores.buckets.base import Buckets
from reliable_cable.stores.buckets.memory import MAX_BUCKETS, MemoryBuckets
from reliable_cable.stores.buckets.redis import RedisBuckets
from reliable_cable.stores.redis.client import Call
from tests.support.client import unique
from tests.support.examples import examples
from tests.support.faults import FaultProxy
from tests.support.redis import RedisServer

from .conftest import MEMORY, REDIS_STORES, Clock

LIMIT = RateLimit(3, 10)


@pytest.fixture
def make_buckets(alias: str, redis_settings: dict[str, Any], clock: Clock) -> Callable[[], Buckets]:
    """Return a function that makes buckets. Those in Redis act like the buckets of separate processes."""
    return lambda: (
        MemoryBuckets(clock) if alias == "memory" else RedisBuckets(CableSettings(**redis_settings), clock=clock)
    )


@pytest.mark.parametrize("alias", [MEMORY, *REDIS_STORES], indirect=True)
class TestBuckets:
    async def test_so_many_at_once_and_as_many_again_in_each_period(
        self, make_buckets: Callable[[], Buckets], clock: Clock
    ) -> None:
        buckets = make_buckets()
        try:
            assert [await buckets.atake("a", LIMIT) for _ in range(4)] == [True, True, True, False]
            assert await buckets.atake("b", LIMIT)
            clock.advance(3.4)
            assert [await buckets.atake("a", LIMIT) for _ in range(2)] == [True, False]
            clock.advance(1000)
            assert [await buckets.atake("a", LIMIT) for _ in range(4)] == [True, True, True, False]
        finally:
            await buckets.aclose()

    @settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        limit=st.builds(RateLimit, st.integers(1, 50), st.integers(1, 60)),
        steps=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), max_size=60),
    )
    def test_random_takes(
        self,
        make_buckets: Callable[[], Buckets],
        clock: Clock,
        limit: RateLimit,
        steps: list[tuple[str, int]],
    ) -> None:
        """Each step advances the clock by whole quarters of the time in which a bucket gets one token.

        The expected buckets hold an eighth of a token more, so that rounding errors change no answer.
        """
        prefix, expected = unique("bucket"), {name: TokenBucket(limit.rate, limit.count + 0.125) for name in "ab"}

        async def run() -> None:
            buckets = make_buckets()
            try:
                for name, quarters in steps:
                    clock.advance(quarters / 4 / limit.rate)
                    assert await buckets.atake(prefix + name, limit) == expected[name].try_to_take(1, clock.now)
            finally:
                await buckets.aclose()

        asyncio.run(run())


async def test_buckets_in_memory_are_bounded_and_forgotten_when_they_are_full(clock: Clock) -> None:
    buckets = MemoryBuckets(clock)
    for number in range(MAX_BUCKETS + 100):
        await buckets.atake(str(number), LIMIT)
    assert len(buckets) == MAX_BUCKETS
    clock.advance(LIMIT.period)
    await buckets.atake("another", LIMIT)
    assert len(buckets) == 1


@pytest.mark.redis
async def test_processes_share_the_buckets_in_redis_whose_keys_expire(redis_url: str, key_prefix: str) -> None:
    values: dict[str, Any] = {"redis_url": redis_url, "key_prefix": key_prefix}
    one, other = (RedisBuckets(CableSettings(**values)) for _ in range(2))
    try:
        takes = [each.atake("tenant\x1f192.0.2.1", LIMIT) for _ in range(5) for each in (one, other)]
        assert sum(await asyncio.gather(*takes)) == LIMIT.count
        ((_, keys),) = await one.client.arun(Call("SCAN", [], [0, "MATCH", f"{key_prefix}:bucket:*", "COUNT", 10**6]))
        assert keys == [f"{key_prefix}:bucket:tenant\x1f192.0.2.1".encode()]
        (ttl,) = await one.client.arun(Call("PTTL", [keys[0].decode()]))
        assert 0 < ttl <= LIMIT.period * 1000
    finally:
        await one.aclose()
        await other.aclose()


@pytest.mark.redis
async def test_a_bucket_fills_in_one_period_though_the_clock_has_gone_back_or_the_limit_was_changed(
    redis_url: str, key_prefix: str, clock: Clock
) -> None:
    buckets = RedisBuckets(CableSettings(redis_url=redis_url, key_prefix=key_prefix), clock=clock)
    try:
        assert [await buckets.atake("a", LIMIT) for _ in range(4)] == [True, True, True, False]
        clock.advance(-3600)
        assert not await buckets.atake("a", LIMIT)
        clock.advance(LIMIT.period / LIMIT.count)
        assert [await buckets.atake("a", LIMIT) for _ in range(2)] == [True, False]

        assert await buckets.atake("b", RateLimit(1, 86400))
        assert not await buckets.atake("b", LIMIT)
        clock.advance(LIMIT.period)
        assert [await buckets.atake("b", LIMIT) for _ in range(4)] == [True, True, True, False]
    finally:
        await buckets.aclose()


@pytest.mark.redis
async def test_an_outage_of_redis_is_an_error(redis_server: RedisServer, key_prefix: str) -> None:
    async with FaultProxy(redis_server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        buckets = RedisBuckets(CableSettings(redis_url=url, key_prefix=key_prefix))
        proxy.refuse()
        with pytest.raises(StoreError):
            await buckets.atake("a", LIMIT)
        await buckets.aclose()
