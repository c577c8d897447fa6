"""`LoginChecks` checks logins in batches, and closes connections without a valid login. Time is virtual."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from django.db import OperationalError

from reliable_cable.hub.login_checks import ACCEPT_TIME, BATCH_SIZE, ROUNDS, SPREAD, LoginChecks
from reliable_cable.logins import Login, session_digest
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.protocol.control import LoginChange
from tests.support.virtual_loop import VirtualLoop

T = TypeVar("T")

INTERVAL = 60.0


class Connection:
    """A connection of a user. It has the session `session-<user>`."""

    def __init__(self, user: str, *, logged_in: bool = True, tenant: str = "") -> None:
        self.tenant = tenant
        self.login = Login(f"session-{user}", user, "backend", "hash") if logged_in else None
        self.closed: list[tuple[DisconnectReason, bool | None]] = []
        #: Looks logins up. It takes the place of the call that the connection would run in a handler's thread.
        self.look_up: Callable[[Connection, Sequence[Login]], Awaitable[Any]]

    @property
    def namespace(self) -> str:
        return self.login.user_id.rpartition("@")[2] if self.login and "@" in self.login.user_id else ""

    async def run_isolated(self, call: Callable[[], T]) -> T:
        assert isinstance(call, partial)
        (logins,) = call.args
        result: T = await self.look_up(self, logins)
        return result

    def close(self, reason: DisconnectReason, *, reconnect: bool | None = None) -> None:
        self.closed.append((reason, reconnect))


class Rig:
    """`LoginChecks` with a look-up that tests control, in virtual time."""

    def __init__(self, loop: VirtualLoop, interval: float | None = INTERVAL) -> None:
        self.loop = loop
        #: The users whose logins are not valid, and the users who cannot be looked up.
        self.invalid: set[str] = set()
        self.unknown: set[str] = set()
        #: The tenants of the users.
        self.tenants: dict[str, str] = {}
        #: The tenants in which nothing can be looked up.
        self.broken: set[str] = set()
        #: The error that every look-up raises.
        self.error: Exception | None = None
        #: How long a look-up takes.
        self.duration = 0.0
        #: The time and the users of each look-up.
        self.looked_up: list[tuple[float, list[str]]] = []
        self.checks = loop.call(lambda: LoginChecks(interval))

    async def _look_up(self, connection: Connection, logins: Sequence[Login]) -> Sequence[bool | Exception]:
        users = [login.user_id for login in logins]
        self.looked_up.append((self.loop.time(), users))
        invalid = self.invalid | {user for user in users if self.tenants[user] != connection.tenant}
        await asyncio.sleep(self.duration)
        if self.error is not None:
            raise self.error
        if connection.tenant in self.broken:
            raise LookupError(connection.tenant)
        return [LookupError(user) if user in self.unknown else user not in invalid for user in users]

    def connect(self, *users: str, **options: Any) -> list[Connection]:
        """Add a connection for each user."""
        connections = [Connection(user, **options) for user in users]
        self.tenants |= dict.fromkeys(users, options.get("tenant", ""))
        for connection in connections:
            connection.look_up = self._look_up
            self.loop.call(lambda connection=connection: self.checks.add(connection))  # type: ignore[misc]
        return connections

    def announce(self, **change: str) -> None:
        """Announce the change of a login."""
        self.loop.call(lambda: self.checks.handle(LoginChange(change)))

    def times(self, user: str) -> list[float]:
        """Return the times at which the login of a user was looked up."""
        return [at for at, users in self.looked_up if user in users]


@pytest.fixture
def rig(loop: VirtualLoop) -> Rig:
    return Rig(loop)


def test_each_login_is_checked_at_least_once_in_each_interval_but_not_much_more_often(rig: Rig) -> None:
    users = [str(number) for number in range(500)]
    shortest = SPREAD * (INTERVAL - INTERVAL / ROUNDS)
    began = rig.loop.time()
    rig.connect(*users)
    rig.loop.run_for(10 * INTERVAL)
    for user in users:
        checks = rig.times(user)
        times = [began, *checks, rig.loop.time()]
        assert max(later - earlier for earlier, later in pairwise(times)) <= INTERVAL + 0.001
        assert min(later - earlier for earlier, later in pairwise(checks)) >= shortest - 0.001


def test_logins_that_come_together_are_checked_in_batches_over_the_whole_interval(rig: Rig) -> None:
    rig.connect(*map(str, range(5000)))
    rig.loop.run_for(INTERVAL)
    assert sum(len(users) for _, users in rig.looked_up) >= 5000
    assert max(len(users) for _, users in rig.looked_up) <= BATCH_SIZE
    by_quarter = [0, 0, 0, 0]
    began = rig.looked_up[0][0]
    for at, users in rig.looked_up:
        by_quarter[min(int((at - began) / INTERVAL * 4), 3)] += len(users)
    assert min(by_quarter) > 500


def test_a_slow_database_is_queried_for_half_of_the_time_at_the_most(rig: Rig) -> None:
    rig.connect(*map(str, range(5000)))
    rig.error = OperationalError("away")
    rig.loop.run_for(2 * INTERVAL)
    rig.error = None
    rig.duration = 0.5
    rig.looked_up.clear()
    began = rig.loop.time()
    rig.loop.run_for(20)
    assert len(rig.looked_up) * rig.duration <= (rig.loop.time() - began) / 2 + 1


def test_connections_without_a_valid_login_end_and_their_clients_reconnect(rig: Rig) -> None:
    ann, bob = rig.connect("ann", "bob")
    rig.invalid.add("ann")
    rig.loop.run_for(INTERVAL)
    assert set(ann.closed) == {(DisconnectReason.REMOTE, True)}
    assert bob.closed == []


def test_connections_without_a_login_are_not_checked(rig: Rig) -> None:
    rig.connect("ann", logged_in=False)
    rig.loop.run_for(3 * INTERVAL)
    assert rig.looked_up == []


def test_connections_that_have_ended_are_not_checked(rig: Rig) -> None:
    ann, bob = rig.connect("ann", "bob")
    rig.loop.call(lambda: rig.checks.remove(ann))
    rig.loop.run_for(INTERVAL)
    assert rig.times("ann") == []
    rig.loop.call(lambda: rig.checks.remove(bob))
    rig.loop.iterate(3)
    assert not rig.loop.call(lambda: asyncio.all_tasks(rig.loop)), "nothing runs without connections"
    rig.connect("carl")
    rig.loop.run_for(INTERVAL)
    assert rig.times("carl")


def test_no_connection_ends_during_an_outage_which_is_logged_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    (ann,) = rig.connect("ann")
    rig.invalid.add("ann")
    rig.error = OperationalError("the database is away")
    rig.loop.run_for(3 * INTERVAL)
    assert ann.closed == []
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "the database is away" in caplog.text
    rig.error = None
    rig.loop.run_for(2)
    assert ann.closed, "the check is repeated soon, and succeeds after the outage"


def test_a_login_that_cannot_be_checked_does_not_affect_the_others(rig: Rig) -> None:
    ann, bob, carl = rig.connect("ann", "bob", "carl")
    rig.unknown.add("ann")
    rig.invalid |= {"ann", "bob"}
    rig.loop.run_for(INTERVAL)
    assert ann.closed == carl.closed == []
    assert bob.closed
    rig.unknown.clear()
    rig.loop.run_for(2)
    assert ann.closed


def test_only_the_tenant_of_a_connection_decides_that_its_login_is_not_valid(rig: Rig) -> None:
    ours = rig.connect(*(f"a{number}" for number in range(50)), tenant="a")
    theirs = rig.connect(*(f"b{number}" for number in range(50)), tenant="b")
    rig.invalid |= {"a0", "b0"}
    rig.loop.run_for(INTERVAL)
    assert [connection.login.user_id for connection in ours + theirs if connection.login and connection.closed] == [
        "a0",
        "b0",
    ]


def test_each_namespace_is_looked_up_by_itself(rig: Rig) -> None:
    rig.connect("ann@a", "bob@b", "ann@b", "bob")
    rig.loop.call(rig.checks.check_all)
    rig.loop.iterate(30)
    assert [users for _, users in rig.looked_up] == [["ann@a"], ["bob@b", "ann@b"], ["bob"]]


def test_a_connection_in_whose_context_nothing_can_be_looked_up_does_not_keep_the_others_open(
    loop: VirtualLoop,
) -> None:
    rig = Rig(loop)
    broken, ann = rig.connect("broken", tenant="broken")[0], rig.connect("ann")[0]
    rig.invalid.add("ann")
    rig.broken.add("broken")
    rig.loop.run_for(2 * INTERVAL)
    assert ann.closed
    assert broken.closed == []


class TestAnnouncedChanges:
    @pytest.mark.parametrize("interval", [INTERVAL, 0, None])
    def test_all_logins_of_the_user_are_checked_at_once(self, loop: VirtualLoop, interval: float | None) -> None:
        rig = Rig(loop, interval)
        rig.connect("ann", "bob", "ann")
        rig.announce(user="ann")
        rig.loop.iterate(5)
        assert [users for _, users in rig.looked_up] == [["ann", "ann"]]

    def test_a_change_during_a_look_up_causes_another_one(self, rig: Rig) -> None:
        (ann,) = rig.connect("ann")
        rig.duration = 1.0
        rig.announce(user="ann")
        rig.loop.run_for(0.5)
        rig.invalid.add("ann")
        rig.announce(user="ann")
        rig.loop.run_for(4)
        assert ann.closed

    @pytest.mark.parametrize("interval", [INTERVAL, 0])
    def test_a_check_that_failed_is_repeated(self, loop: VirtualLoop, interval: float) -> None:
        rig = Rig(loop, interval)
        (ann,) = rig.connect("ann")
        rig.invalid.add("ann")
        rig.error = OperationalError("away")
        rig.announce(user="ann")
        rig.loop.run_for(3)
        rig.error = None
        rig.loop.run_for(2)
        assert ann.closed

    def test_the_connections_of_a_session_that_was_replaced_end_without_a_look_up(self, rig: Rig) -> None:
        ann, bob, other = rig.connect("ann", "bob", "ann")
        rig.announce(session=session_digest("session-ann"))
        assert ann.closed == other.closed == [(DisconnectReason.REMOTE, True)]
        assert bob.closed == []
        assert rig.looked_up == []

    @pytest.mark.parametrize("change", [{"user": "ann"}, {"session": session_digest("session-ann")}])
    def test_a_connection_that_was_being_accepted_is_checked_at_once(self, rig: Rig, change: dict[str, str]) -> None:
        rig.announce(**change)
        rig.connect("ann", "bob")
        rig.loop.iterate(5)
        assert [users for _, users in rig.looked_up] == [["ann"]]

    def test_a_connection_that_comes_later_is_not(self, rig: Rig) -> None:
        rig.announce(user="ann")
        rig.loop.run_for(ACCEPT_TIME + 1)
        rig.connect("ann")
        rig.loop.iterate(5)
        assert rig.looked_up == []

    def test_all_logins_are_checked_if_changes_may_have_been_lost(self, rig: Rig) -> None:
        rig.connect("ann", "bob")
        rig.loop.call(rig.checks.check_all)
        rig.loop.iterate(5)
        assert [users for _, users in rig.looked_up] == [["ann", "bob"]]


@pytest.mark.parametrize("interval", [0, None])
def test_the_regular_checks_can_be_turned_off(loop: VirtualLoop, interval: float | None) -> None:
    rig = Rig(loop, interval)
    rig.connect("ann")
    rig.loop.run_for(1e5)
    assert rig.looked_up == []
