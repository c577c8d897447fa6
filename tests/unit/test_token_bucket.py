"""`TokenBucket` limits a rate with bursts. Its methods take the time as an argument."""

from __future__ import annotations

import pytest

from reliable_cable.concurrency.token_bucket import TokenBucket


def test_a_burst_can_be_taken_at_once_and_more_on_credit() -> None:
    bucket = TokenBucket(rate=10, burst=20)
    assert bucket.take(20, 1000) == 0
    assert bucket.take(5, 1000) == pytest.approx(0.5)
    assert bucket.take(0, 1000.5) == 0


def test_it_does_not_hold_more_than_its_burst() -> None:
    bucket = TokenBucket(rate=10, burst=20)
    bucket.take(20, 1000)
    assert bucket.take(21, 9999) == pytest.approx(0.1)


def test_what_is_not_there_is_not_taken() -> None:
    bucket = TokenBucket(rate=10, burst=20)
    assert bucket.try_to_take(20, 1000)
    assert not bucket.try_to_take(1, 1000)
    assert bucket.try_to_take(1, 1000.1)


def test_it_is_full_at_first_and_when_it_was_not_used_for_long_enough() -> None:
    bucket = TokenBucket(rate=10, burst=20)
    assert bucket.is_full(1000)
    bucket.take(20, 1000)
    assert not bucket.is_full(1001.9)
    assert bucket.is_full(1002.1)
