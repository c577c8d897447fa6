"""The account of what a client makes the server keep."""

from __future__ import annotations

from reliable_cable.connection.account import LASTING_SHARE, Account


def test_things_without_an_end_may_fill_a_part_of_the_limit() -> None:
    account = Account(100)
    assert account.reserve(int(100 * LASTING_SHARE))
    assert not account.reserve(1)
    assert (account.used, account.lasting) == (25, 25)


def test_what_is_given_back_can_be_reserved_again() -> None:
    account = Account(100)
    assert account.reserve(20)
    assert account.reserve(-20)
    assert (account.used, account.lasting) == (0, 0)
    assert account.reserve(25)


def test_frames_and_commands_do_not_take_the_part_of_things_without_an_end() -> None:
    account = Account(100)
    account.used += 90
    assert account.reserve(25)
    assert account.used == 115
