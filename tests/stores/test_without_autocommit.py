"""Broadcasts in transactions for which Django runs no `on_commit` hooks, because autocommit is off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.db import connections, transaction

from reliable_cable import (
    BroadcastError,
    broadcast,
    broadcast_batch,
    broadcast_template,
    disconnect,
    forget,
    history,
    position,
    revoke,
)
from reliable_cable.conf import CONTROL_STREAM, get_settings
from reliable_cable.stores.engine import get_engine
from reliable_cable.testing import isolated_cable
from reliable_cable.turbo import broadcast_append_to, broadcast_remove_to
from tests.stores.test_after_commit import data, durable_param, every_engine, other, own, redis_param

__all__ = ["other", "own"]

in_tables = pytest.mark.parametrize(
    "alias", [pytest.param("default", id="sqlite"), "postgres", durable_param], indirect=True
)
elsewhere = pytest.mark.parametrize("alias", ["memory", redis_param], indirect=True)

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, databases=["default", "postgres"])]


@contextmanager
def manual(database: str) -> Iterator[None]:
    """Turn autocommit off inside the block. At its end, roll back what the block has not committed."""
    transaction.set_autocommit(False, using=database)
    try:
        yield
    finally:
        transaction.rollback(using=database)
        transaction.set_autocommit(True, using=database)


#: All calls that wait for a transaction, each with the advice in the error that it raises if Django runs no hooks.
CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "transient": (lambda: broadcast("a", 2, transient=True), "immediate=True"),
    "batch": (lambda: broadcast_batch([("a", 2), ("a", 3, {"transient": True})]), "immediate=True"),
    "template": (lambda: broadcast_template("a", "admin/500.html"), "immediate=True"),
    "turbo template": (lambda: broadcast_append_to("a", target="x", template="admin/500.html"), "immediate=True"),
    "turbo": (lambda: broadcast_remove_to("a", target="x"), "immediate=True"),
    "forget": (lambda: forget("a"), "call it after the commit"),
    "disconnect": (lambda: disconnect(user="ann"), "call it after the commit"),
    "revoke": (lambda: revoke(stream="a"), "call it after the commit"),
}
every_call = pytest.mark.parametrize(("call", "remedy"), CALLS.values(), ids=CALLS)


def everything() -> Any:
    """Return the positions and messages of all streams that `CALLS` change."""
    return position("a"), data(), get_engine().streams.position(CONTROL_STREAM)


@contextmanager
def without_autocommit() -> Iterator[None]:
    """Turn autocommit off for the database `postgres`, as `AUTOCOMMIT = False` in `DATABASES` does."""
    connection = connections["postgres"]
    connection.close()
    try:
        with mock.patch.dict(connection.settings_dict, AUTOCOMMIT=False):
            yield
    finally:
        connection.close()


class TestWithoutAutocommit:
    @in_tables
    @pytest.mark.usefixtures("engine")
    def test_a_rollback_sends_nothing_and_uses_no_position(self, own: str) -> None:
        with manual(own):
            assert broadcast("a", 1) is None
            transaction.rollback(using=own)
        assert broadcast("a", 2) == position("a")
        assert [(entry.position.offset, entry.data) for entry in history("a")] == [(1, 2)]

    @in_tables
    @pytest.mark.usefixtures("engine")
    def test_a_committed_broadcast_comes_before_the_next_one(self, own: str) -> None:
        with manual(own):
            broadcast("a", 1)
            broadcast_batch([("a", 2), ("b", 3)])
            transaction.commit(using=own)
        broadcast("a", 4)
        broadcast("b", 5)
        assert data() == [1, 2, 4]
        assert data("b") == [3, 5]

    # On SQLite, an atomic block inside a manual transaction commits: it ends a savepoint without a BEGIN before it.
    @pytest.mark.parametrize("alias", ["postgres"], indirect=True)
    @pytest.mark.usefixtures("engine")
    def test_an_atomic_block_inside_a_manual_transaction_is_part_of_it(self, own: str) -> None:
        with manual(own):
            with transaction.atomic(using=own):
                assert broadcast("a", 1) is None
            transaction.rollback(using=own)
        broadcast("a", 2)
        assert data() == [2]

    @elsewhere
    @pytest.mark.usefixtures("engine")
    def test_a_broadcast_that_cannot_wait_for_the_commit_is_an_error(self, own: str) -> None:
        for using in (None, own):
            with manual(own), pytest.raises(BroadcastError, match=r"autocommit is off on database .*immediate=True"):
                broadcast("a", 1, using=using)
        assert data() == []

    @every_engine
    @every_call
    @pytest.mark.usefixtures("engine")
    def test_everything_else_cannot_wait_either(self, own: str, call: Callable[[], object], remedy: str) -> None:
        broadcast("a", 1)
        before = everything()
        with manual(own):
            with pytest.raises(BroadcastError, match=rf"autocommit is off .* \(set_autocommit\(False\)\).*{remedy}"):
                call()
            transaction.commit(using=own)
        assert everything() == before

    @every_engine
    @pytest.mark.usefixtures("engine")
    def test_two_transactions_cannot_be_awaited_if_one_is_manual(self, own: str, other: str) -> None:
        broadcast("a", 1)
        before = everything()
        with manual(own), transaction.atomic(using=other), pytest.raises(BroadcastError, match="autocommit is off"):
            broadcast("a", 2)
        assert everything() == before

    @in_tables
    @pytest.mark.usefixtures("engine")
    def test_the_test_kit_says_before_it_stores_that_it_cannot_see_the_commit(self, own: str) -> None:
        with isolated_cable(ENGINE=get_settings().engine, KEY_PREFIX=get_settings().key_prefix), manual(own):
            with pytest.raises(BroadcastError, match="Nothing was sent: autocommit is off"):
                broadcast("a", 1)
            transaction.commit(using=own)
        broadcast("a", 2)
        assert data() == [2]

    @pytest.mark.parametrize("alias", ["memory", redis_param], indirect=True)
    @every_call
    @pytest.mark.usefixtures("engine")
    def test_an_atomic_block_whose_end_commits_nothing_is_an_error(
        self, call: Callable[[], object], remedy: str
    ) -> None:
        """With `AUTOCOMMIT = False` in the settings, Django never runs the hooks of such a block."""
        before = everything()
        with without_autocommit():
            with transaction.atomic(using="postgres"):
                with pytest.raises(BroadcastError, match=rf"AUTOCOMMIT in DATABASES.*{remedy}"):
                    call()
                assert connections["postgres"].run_on_commit == []
            transaction.commit(using="postgres")
        assert everything() == before

    @pytest.mark.parametrize("alias", ["postgres"], indirect=True)
    @pytest.mark.usefixtures("engine")
    def test_such_a_block_stores_the_messages_of_its_own_database(self) -> None:
        with without_autocommit():
            with transaction.atomic(using="postgres"):
                assert broadcast("a", 1) is None
            transaction.commit(using="postgres")
            assert connections["postgres"].run_on_commit == []
        broadcast("a", 2)
        assert data() == [1, 2]

    @pytest.mark.parametrize("alias", ["memory"], indirect=True)
    @pytest.mark.usefixtures("engine")
    def test_a_change_of_a_login_is_not_announced(self, own: str, caplog: pytest.LogCaptureFixture) -> None:
        with manual(own):
            user = User.objects.db_manager(own).create_user("ann")
            user.set_password("new")
            user.save()
        (line,) = [record.message for record in caplog.records if "could not be announced" in record.message]
        assert "autocommit is off" in line
        assert "immediate" not in line

    @pytest.mark.parametrize("alias", ["memory", "postgres", redis_param], indirect=True)
    @pytest.mark.usefixtures("engine")
    def test_an_immediate_broadcast_is_stored_outside_the_transaction(self, own: str) -> None:
        with manual(own):
            with connections[own].cursor() as cursor:
                cursor.execute("SELECT 1")
            assert broadcast("a", 1, immediate=True) is not None
            transaction.rollback(using=own)
        assert data() == [1]
