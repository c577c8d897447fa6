"""`RATE_LIMITS["connect"]` limits the connections of each address, even while Redis does not answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.concurrency.tasks import BackgroundTasks
from reliable_cable.conf import RateLimit
from reliable_cable.exceptions import StoreError
from reliable_cable.hub.connect_limit import MAX_LENGTH, PATIENCE, PAUSE, ConnectLimit, client_address
from reliable_cable.stores.buckets.base import Buckets

from .wire import Client

LIMIT = RateLimit(2, 10)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Faulty(Buckets):
    """Shared buckets that raise an error or do not answer."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    async def atake(self, name: str, limit: RateLimit) -> bool:
        self.calls += 1
        if self.error is not None:
            raise self.error
        await asyncio.get_running_loop().create_future()
        raise AssertionError


def scope(host: str) -> dict[str, Any]:
    return {"client": (host, 1234)}


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("testclient", "testclient"),
        # Some proxies write the client's port into their header, and each connection has another port.
        ("192.0.2.1:49152", "192.0.2.1"),
        ("[2001:db8:1:2::5]:49152", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::5]", "2001:db8:1:2::/64"),
        ("testclient:80", "testclient:80"),
    ],
)
def test_an_address_is_that_of_the_scope_and_a_network_for_ipv6(host: str, address: str) -> None:
    assert client_address(scope(host)) == address


@pytest.mark.parametrize("client", [None, [], ("", 0), (None, None)])
def test_servers_on_a_unix_socket_know_no_address(client: Any) -> None:
    assert client_address({"client": client}) is None
    assert client_address({}) is None


def test_headers_are_not_read() -> None:
    headers = [(b"x-forwarded-for", b"192.0.2.9"), (b"forwarded", b"for=192.0.2.9"), (b"x-real-ip", b"192.0.2.9")]
    assert client_address({**scope("192.0.2.1"), "headers": headers}) == "192.0.2.1"


@given(st.text())
def test_any_text_of_a_server_has_a_bounded_address(host: str) -> None:
    address = client_address(scope(host))
    assert address is None if not host else address and len(address) <= MAX_LENGTH


class TestLimit:
    async def test_each_address_of_each_namespace_has_its_own(self) -> None:
        limit = ConnectLimit(LIMIT, None, BackgroundTasks(), Clock())
        addresses = [("192.0.2.1", ""), ("192.0.2.2", ""), ("192.0.2.1", "tenant"), ("2001:db8::1", "")]
        for host, namespace in addresses:
            assert [await limit.allows(scope(host), namespace) for _ in range(3)] == [True, True, False]
        assert not await limit.allows(scope("2001:db8::2"), "")
        assert await limit.allows(scope("2001:db8:0:1::2"), "")

    async def test_unknown_addresses_are_allowed(self) -> None:
        limit = ConnectLimit(LIMIT, None, BackgroundTasks(), Clock())
        assert all([await limit.allows({}, "") for _ in range(10)])

    @pytest.mark.parametrize("error", [None, StoreError("down")])
    async def test_while_redis_cannot_be_used_each_process_limits_and_waits_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception | None
    ) -> None:
        monkeypatch.setattr("reliable_cable.hub.connect_limit.PATIENCE", 0.01)
        shared, clock, tasks = Faulty(), Clock(), BackgroundTasks()
        shared.error = error
        limit = ConnectLimit(LIMIT, shared, tasks, clock)
        with caplog.at_level(logging.WARNING):
            assert [await limit.allows(scope("192.0.2.1"), "") for _ in range(3)] == [True, True, False]
        assert shared.calls == 1
        assert ("down" if error else "no answer in time") in caplog.text
        clock.now += PAUSE
        await limit.allows(scope("192.0.2.1"), "")
        assert shared.calls == 2
        for task in tasks.pending:
            task.cancel()

    def test_a_handshake_waits_much_less_than_a_client_does(self) -> None:
        assert PATIENCE <= 1


async def test_a_refused_handshake_is_closed_and_nothing_runs_for_it(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "RATE_LIMITS": {"connect": "1/h"}}
    address = {"client": ["192.0.2.1", 1]}
    async with Client(scope=address):
        refused = Client(scope=address)
        assert (await refused.communicator.connect())[0] is False
        assert "'192.0.2.1' has connected more than 1 times in 3600 s" in caplog.text
        async with Client(scope={"client": ["192.0.2.2", 1]}):
            pass
