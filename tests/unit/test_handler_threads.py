"""Handlers of two tenants can run in two threads of a pool. Each sets its tenant on its own database connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from django.db import connections

from reliable_cable import CableConsumer, Channel, action
from reliable_cable.channel import registry
from reliable_cable.concurrency import daemon_executor

from .wire import Client, identifier, registered, until


@pytest.fixture(autouse=True)
def _rows(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60, "HANDLER_THREADS": 2}
    with registered(Rows=Rows):
        yield


class Rows(Channel, abstract=True):
    """Transmits the name of the tenant that is set on the database connection."""

    def before_action(self, action: str, data: Any) -> None:
        Tenants.meet()

    @action
    def read(self) -> None:
        with connections["postgres"].cursor() as cursor:
            cursor.execute("SELECT current_setting('cable.tenant', true)")
            self.transmit({"tenant": cursor.fetchone()[0]})
        Tenants.meet()


class Slow(Channel, abstract=True):
    """Has a sync handler that waits."""

    #: `subscribed` waits until this is set.
    may_go_on = threading.Event()

    def subscribed(self) -> None:
        self.may_go_on.wait(30)


async def test_a_handler_that_waits_for_a_thread_is_logged_with_the_remedy(
    settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No other test uses this number of threads, so this pool has reported nothing in the last minute.
    settings.RELIABLE_CABLE["HANDLER_THREADS"] = 3
    monkeypatch.setitem(registry, "Slow", [Slow])
    monkeypatch.setattr(daemon_executor, "MAX_WAIT", 0.0)
    Slow.may_go_on.clear()
    async with contextlib.AsyncExitStack() as clients:
        each = [await clients.enter_async_context(Client()) for _ in range(8)]
        for client in each:
            await client.send("subscribe", identifier("Slow"))
        await until(lambda: caplog.messages)
        Slow.may_go_on.set()
        for client in each:
            assert (await client.receive())["type"] == "confirm_subscription"
    (line,) = caplog.messages
    assert line.startswith("A sync handler has waited ")
    assert "all 3 threads for sync handlers are busy. Raise RELIABLE_CABLE['HANDLER_THREADS']" in line


class Tenants(CableConsumer):
    """Sets the tenant on the database connection of the thread, for each call."""

    #: If set, two calls wait for each other, in their checks and in their handlers, so that they run in two threads.
    together: ClassVar[threading.Barrier | None] = None

    @classmethod
    def meet(cls) -> None:
        if cls.together is not None:
            cls.together.wait(10)

    @contextlib.contextmanager
    def around_command(self) -> Iterator[None]:
        with connections["postgres"].cursor() as cursor:
            if self.user is not None:
                cursor.execute("SELECT set_config('cable.tenant', %s, false)", [self.user])
            try:
                yield
            finally:
                if self.user is not None:
                    cursor.execute("RESET cable.tenant")


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
async def test_calls_of_two_tenants_read_their_own_rows_and_leave_nothing_on_the_threads_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(connections.settings["postgres"], "CONN_MAX_AGE", None)
    rows = identifier("Rows")

    async def read(client: Client) -> str:
        await client.perform(rows, "read")
        return str((await client.receive())["message"]["tenant"])

    def tenant_client(name: str | None) -> Client:
        return Client(consumer=Tenants, scope={"user": name})

    async with tenant_client("ada") as ada, tenant_client("bob") as bob, tenant_client(None) as nobody:
        for client in (ada, bob, nobody):
            await client.subscribe(rows)
        monkeypatch.setattr(Tenants, "together", threading.Barrier(2))
        for _ in range(3):
            assert list(await asyncio.gather(read(ada), read(bob))) == ["ada", "bob"]
        for other, name in ((ada, "ada"), (bob, "bob")):
            answers = await asyncio.gather(read(other), read(nobody))
            assert list(answers) == [name, ""], "the former tenant is still set on a thread's connection"
