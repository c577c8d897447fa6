"""Notifications of PostgreSQL, by which messages of other processes are found at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from typing import Any
from unittest import mock

import psycopg
import pytest
from django.db import OperationalError, connections, transaction

from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.database import notify
from reliable_cable.stores.streams.base import Advanced, Message, Published, StreamEvent, Transient
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_notices import Notice
from reliable_cable.stores.streams.model_polling import Poll, PollingListener, SeenIds
from tests.stores.conftest import POSTGRES, SQLITE, MakeStore, until

#: A text that is too large for a notification.
LARGE = '"' + "x" * 9000 + '"'

Listen = Callable[..., Any]
postgres = pytest.mark.parametrize("alias", [POSTGRES], indirect=True)


@pytest.fixture
def make_slow(make_store: MakeStore) -> MakeStore:
    """Return a function that makes a store whose polls find nothing during the test."""
    return lambda **settings: make_store(**{"poll_interval": 60, **settings})


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """Return a function that makes a listener, waits until it gets notifications, and returns it and its events."""
    listeners: list[PollingListener] = []

    async def start(store: ModelStreamStore, *streams: str) -> tuple[PollingListener, list[StreamEvent]]:
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        assert isinstance(listener, PollingListener)
        listeners.append(listener)
        polls: list[Poll] = []
        poll = store.poll

        def counted(names: Collection[str], seen: SeenIds) -> Poll:
            polls.append(poll(names, seen))
            return polls[-1]

        with mock.patch.object(store, "poll", counted):
            await listener.subscribe_many(streams)
            # The first poll belongs to the subscription. There is another one when notifications begin to arrive.
            await until(lambda: listener._notified and len(polls) > 1)
        return listener, heard

    yield start
    for listener in listeners:
        await listener.close()


@pytest.fixture
def raw(alias: str) -> Iterator[psycopg.Connection]:
    """A connection to the test database that belongs to no store."""
    with psycopg.connect(**connections[alias].get_connection_params(), autocommit=True) as connection:
        yield connection


def kill_listening(raw: psycopg.Connection) -> int:
    """Terminate the server processes of all connections that LISTEN, and return their number."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'reliable_cable%'"
    return len(raw.execute(query).fetchall())


@postgres
class TestNotifications:
    async def test_messages_of_another_process_arrive_with_their_data(
        self, make_slow: MakeStore, listen: Listen
    ) -> None:
        here, there = make_slow(), make_slow()
        _, heard = await listen(here, "a")
        with mock.patch.object(here, "poll") as polled, mock.patch.object(here, "tails", side_effect=AssertionError):
            (position,) = await there.aappend([("a", Message('{"ä":"\\n"}', exclude="sid"))])
            await there.apublish_transient("a", Message("2", exclude="other"))
            await there.awhisper("a", Message("3"))
            await until(lambda: len(heard) == 3)
        assert heard == [
            Published("a", position.epoch, Entry(1, '{"ä":"\\n"}', "sid")),
            Transient("a", "2", "other"),
            Transient("a", "3", whisper=True),
        ]
        assert not polled.called

    async def test_messages_that_are_too_large_cause_a_read(self, make_slow: MakeStore, listen: Listen) -> None:
        here, there = make_slow(), make_slow()
        _, heard = await listen(here, "a")
        await there.aappend([("a", Message(LARGE)), ("b", Message(LARGE))])
        await until(lambda: heard)
        await there.apublish_transient("a", Message(LARGE))
        await there.awhisper("a", Message(LARGE))
        await until(lambda: len(heard) == 3)
        assert heard == [Advanced("a"), Transient("a", LARGE), Transient("a", LARGE, whisper=True)]

    async def test_a_batch_of_many_messages_arrives(self, make_slow: MakeStore, listen: Listen) -> None:
        here, there = make_slow(history_size=5000), make_slow(history_size=5000)
        _, heard = await listen(here, "a")
        await there.aappend([("a", Message(f'"{"x" * 100}"')) for _ in range(200)])
        await until(lambda: len(heard) == 200)
        assert [event.entry.offset for event in heard if isinstance(event, Published)] == [*range(1, 201)]
        await there.aappend([("a", Message(f'"{"x" * 1000}"')) for _ in range(2000)])
        await until(lambda: Advanced("a") in heard)
        assert (await here.aposition("a")).offset == 2200

    async def test_the_end_of_an_epoch_is_announced(self, make_slow: MakeStore, listen: Listen) -> None:
        here, there = make_slow(), make_slow()
        await there.aappend([("a", Message("1"))])
        _, heard = await listen(here, "a")
        await there.aforget("a")
        # The message may have been announced during the subscription.
        await until(lambda: Advanced("a") in heard)

    async def test_messages_of_a_transaction_arrive_after_its_commit(
        self, make_slow: MakeStore, listen: Listen, alias: str
    ) -> None:
        here, there = make_slow(), make_slow()
        _, heard = await listen(here, "a")

        def in_transaction(*, fails: bool) -> None:
            with transaction.atomic(using=alias):
                there.append_on_commit([("a", Message("1"))], using=alias)
                if fails:
                    transaction.set_rollback(True, using=alias)
            connections[alias].close()

        await asyncio.to_thread(in_transaction, fails=True)
        await asyncio.to_thread(in_transaction, fails=False)
        await until(lambda: heard)
        assert [type(event) for event in heard] == [Published]

    async def test_nothing_is_announced_twice(self, make_store: MakeStore, listen: Listen) -> None:
        # Polls run all the time, and find many messages before their notifications arrive, or after them.
        here, there = make_store(history_size=5000), make_store(history_size=5000)
        with mock.patch("reliable_cable.stores.streams.model_polling.SLOW_POLL_INTERVAL", 0.001):
            _, heard = await listen(here, "a")
            for number in range(100):
                await there.apublish_transient("a", Message(f'"t{number}"'))
                await there.awhisper("a", Message(f'"w{number}"'))
            await until(lambda: len(heard) >= 200)
        transients = [event for event in heard if isinstance(event, Transient)]
        assert len(transients) == len(set(transients)) == 200
        for kind in "tw":
            numbers = [event.data for event in transients if event.data.startswith(f'"{kind}')]
            assert numbers == [f'"{kind}{number}"' for number in range(100)]

    async def test_own_messages_are_announced_once(self, make_slow: MakeStore, listen: Listen) -> None:
        here, there = make_slow(), make_slow()
        _, heard = await listen(here, "a")
        await here.aappend([("a", Message("1"))])
        await here.awhisper("a", Message("2"))
        await there.awhisper("a", Message('"end"'))
        await until(lambda: Transient("a", '"end"', whisper=True) in heard)
        assert [type(event) for event in heard] == [Published, Transient, Transient]

    async def test_streams_that_are_not_subscribed_are_ignored(self, make_slow: MakeStore, listen: Listen) -> None:
        here, there = make_slow(), make_slow()
        _, heard = await listen(here, "a")
        await there.aappend([("b", Message("1"))])
        await there.aappend([("a", Message("2"))])
        await until(lambda: heard)
        assert [event.stream for event in heard] == ["a"]


@postgres
class TestLostConnections:
    async def test_a_lost_connection_is_opened_again_and_nothing_is_lost(
        self, make_slow: MakeStore, listen: Listen, raw: psycopg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        here, there = make_slow(), make_slow()
        listener, heard = await listen(here, "a")
        with mock.patch.object(notify, "RETRY_DELAYS", (0.5, 0.5)):
            assert kill_listening(raw) == 1
            await until(lambda: not listener._notified)
            await there.aappend([("a", Message("1"))])
            await until(lambda: heard)
        await until(lambda: listener._notified)
        assert caplog.text.count("cannot LISTEN") == 1
        await until(lambda: "can LISTEN" in caplog.text)
        await there.awhisper("a", Message("2"))
        await until(lambda: Transient("a", "2", whisper=True) in heard)

    async def test_without_own_notifications_streams_are_polled_often(
        self, make_store: MakeStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        # A connection pooler in transaction mode accepts LISTEN, but passes no notifications on.
        here, there = make_store(), make_store()
        heard: list[StreamEvent] = []
        with (
            mock.patch.object(notify, "PROBE_TIMEOUT", 0.05),
            mock.patch.object(here._announcer, "probe"),
        ):
            listener = here.listen(heard.append)
            await listener.subscribe("a")
            await until(lambda: "own notifications do not arrive" in caplog.text)
            assert not listener._notified
            await there.awhisper("a", Message("1"))
            await until(lambda: heard)
            await listener.close()
        assert "RELIABLE_CABLE['NOTIFY']" in caplog.text

    async def test_a_silent_connection_is_noticed(self, make_slow: MakeStore, listen: Listen) -> None:
        here = make_slow()
        with (
            mock.patch.object(notify, "PROBE_INTERVAL", 0.01),
            mock.patch.object(notify, "PROBE_TIMEOUT", 5),
        ):
            listener, _ = await listen(here, "a")
            with mock.patch.object(notify, "SILENT_RETRY_DELAY", 0.01):
                with (
                    # The next probe, a notification of the process to itself, times out before it is sent.
                    mock.patch.object(notify, "PROBE_TIMEOUT", 0),
                    mock.patch.object(notify.NotificationReceiver, "_begin"),
                ):
                    await until(lambda: not listener._notified)
                await until(lambda: listener._notified)

    async def test_messages_that_are_not_announced_make_polls_frequent(
        self, make_store: MakeStore, listen: Listen
    ) -> None:
        here, there = make_store(), make_store(notify=False)
        with mock.patch("reliable_cable.stores.streams.model_polling.SLOW_POLL_INTERVAL", 0.02):
            listener, heard = await listen(here, "a")
            assert listener._regular_interval() == 0.02
            await there.aappend([("a", Message("1"))])
            await until(lambda: listener._regular_interval() == 0.01)
            assert heard == [Advanced("a")]

    async def test_a_notification_of_others_causes_a_poll(
        self, make_slow: MakeStore, listen: Listen, raw: psycopg.Connection
    ) -> None:
        # Every role may send notifications. Nobody may forge a message.
        here, there = make_slow(), make_slow(notify=False)
        _, heard = await listen(here, "a")
        await there.aappend([("a", Message("1"))])
        raw.execute(f"SELECT pg_notify({notify._CHANNEL}, 'forged')")
        await until(lambda: heard)
        assert heard == [Advanced("a")]


@pytest.mark.parametrize("alias", [SQLITE, POSTGRES], indirect=True)
class TestWithoutNotifications:
    async def test_whispers_reach_other_processes_by_polls(self, make_store: MakeStore) -> None:
        here, there = make_store(notify=False), make_store(notify=False)
        heard: list[StreamEvent] = []
        listener = here.listen(heard.append)
        await listener.subscribe("a")
        for number in range(5):
            await there.awhisper("a", Message(str(number), exclude="sid"))
        await there.awhisper("b", Message("6"))
        await until(lambda: len(heard) == 5)
        await listener.close()
        assert heard == [Transient("a", str(number), "sid", whisper=True) for number in range(5)]

    async def test_nothing_leaves_the_callers_thread_without_threads(self, make_store: MakeStore) -> None:
        store = make_store(handler_threads=0)
        with mock.patch("reliable_cable.stores.streams.model_announcer.submit_alone") as submitted:
            store.whisper("a", Message("1"))
            await store.aappend([("a", Message("2"))])
            await store.apublish_transient("a", Message("3"))
        assert not submitted.called


@postgres
def test_a_transaction_of_the_caller_sends_no_notification(make_store: MakeStore, alias: str) -> None:
    store = make_store(handler_threads=1)
    with (
        mock.patch.object(store._announcer, "announce") as announced,
        transaction.atomic(using=alias),
    ):
        store._announce([Advanced("a")])
    assert not announced.called


@postgres
async def test_a_failure_to_notify_breaks_no_broadcast(
    make_slow: MakeStore, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = make_slow(), make_slow()
    _, heard = await listen(here, "a")
    with mock.patch.object(there._announcer._sender, "send", side_effect=ValueError("a bug")) as sent:
        for _ in range(2):
            calls = sent.call_count
            assert await there.aappend([("a", Message("1"))])
            await until(lambda calls=calls: sent.call_count > calls)  # type: ignore[misc]
    # The next notification tells the receivers to poll, because earlier ones could not be sent.
    await there.aappend([("b", Message("1"))])
    await until(lambda: Advanced("a") in heard)
    assert caplog.text.count("could not be notified") == 1


@postgres
async def test_whispers_that_cannot_be_stored_delay_no_other_message(
    make_slow: MakeStore, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = make_slow(), make_slow()
    _, heard = await listen(here, "a")
    with mock.patch.object(there._announcer, "_store", side_effect=ValueError("a bug")):
        await there.awhisper("a", Message("1"))
        (position,) = await there.aappend([("a", Message("2"))])
        await until(lambda: "Whispers could not be passed" in caplog.text and heard)
    assert heard == [Published("a", position.epoch, Entry(1, "2", ""))]


@postgres
def test_probes_do_not_wait_for_whispers(make_store: MakeStore, caplog: pytest.LogCaptureFixture) -> None:
    announcer = make_store()._announcer
    done: list[str] = []

    def store(whispers: Sequence[Transient]) -> list[int]:
        done.append("store")
        raise TimeoutError

    with (
        mock.patch.object(announcer, "_start"),
        mock.patch.object(announcer, "_store", store),
        mock.patch.object(announcer._sender, "send", side_effect=lambda payloads: done.extend(payloads)),
    ):
        announcer.whisper(Transient("a", "1", whisper=True))
        announcer.probe("?1")
        announcer._work(announcer._pending)
    assert done == ["?1", "store"]
    assert "are lost for their clients: TimeoutError" in caplog.text


@postgres
async def test_what_could_not_be_sent_is_not_sent_later(make_slow: MakeStore, listen: Listen) -> None:
    # Meanwhile, a failover may have lost the message.
    here, there = make_slow(), make_slow()
    _, heard = await listen(here, "a")
    send = there._announcer._sender.send
    sent: list[list[Notice]] = []

    def fail_once(payloads: Sequence[str]) -> None:
        sent.append([there._announcer.decode(payload) for payload in payloads])
        if len(sent) == 1:
            raise OperationalError("the server has closed the connection")
        send(payloads)

    with mock.patch.object(there._announcer._sender, "send", fail_once):
        await there.aappend([("a", Message("1"))])
        await until(lambda: heard)
    assert sent[1:] == [[Notice(there.origin, [], look=True)]]
    assert heard == [Advanced("a")]


@postgres
def test_a_slow_database_gets_fewer_notifications(make_store: MakeStore) -> None:
    announcer = make_store()._announcer
    assert [round(announcer._pause(took), 3) for took in (0.0, 0.001, 0.01, 1.0)] == [0.005, 0.004, 0.02, 0.05]


@postgres
@pytest.mark.usefixtures("make_store")
def test_transient_messages_cause_no_wal_but_their_ids_survive_a_crash(raw: psycopg.Connection) -> None:
    query = "SELECT relname, relpersistence FROM pg_class WHERE relname LIKE 'reliable_cable_transiententry%%'"
    kinds: dict[str, str] = dict(raw.execute(query).fetchall())
    assert kinds["reliable_cable_transiententry"] == "u"
    assert kinds["reliable_cable_transiententry_id_seq"] == "p"
