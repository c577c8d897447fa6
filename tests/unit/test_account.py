"""`Account` counts and limits the bytes that the subscriptions of a client use."""

from __future__ import annotations

from reliable_cable.connection.account import LASTING_SHARE, SUBSCRIPTION_SIZE, Account


def test_what_is_kept_without_an_end_may_fill_a_part_of_the_limit() -> None:
    account = Account(10_000)
    assert account.reserve(int(10_000 * LASTING_SHARE))
    assert not account.reserve(1)
    assert (account.used, account.lasting) == (0, 2500)


def test_what_is_given_back_can_be_reserved_again() -> None:
    account = Account(10_000)
    assert account.reserve(2000)
    assert account.reserve(-2000)
    assert account.lasting == 0
    assert account.reserve(2500)


def test_many_subscriptions_may_keep_more() -> None:
    account = Account(10_000, subscriptions=100)
    assert account.reserve(100 * SUBSCRIPTION_SIZE)
    assert not account.reserve(1)
