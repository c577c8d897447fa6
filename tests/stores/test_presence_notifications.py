"""Presence events of other processes arrive by notifications of PostgreSQL, over the connection of streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from django.db import connections

from reliable_cable.stores.presence.base import Member
from reliable_cable.stores.presence.model import ModelPresenceStore
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.model import ModelStreamStore

from .conftest import POSTGRES, Clock, until
from .presence import TTL, elapse, joined, left
from .test_model_presence import MakePresence, make

__all__ = ["make"]

pytestmark = pytest.mark.parametrize("alias", [POSTGRES], indirect=True)


@pytest.fixture
async def slow(make: MakePresence) -> AsyncIterator[tuple[ModelPresenceStore, list[Any]]]:
    """A store whose polls find nothing during the test, and the events of the stream `s` that it announces."""
    store = make(poll_interval=3600)
    heard: list[Any] = []
    listener = store.listen(heard.append)
    await listener.subscribe("s")
    await until(lambda: listener._polling._notified)
    yield store, heard
    await listener.close()


async def test_events_of_another_process_arrive_at_once(
    slow: tuple[ModelPresenceStore, list[Any]], make: MakePresence
) -> None:
    store, heard = slow
    there = make(poll_interval=3600)
    await there.ajoin_all([Member("s", "phone", "1", {"name": "Änn\n"}), Member("t", "phone", "1")])
    await there.aleave("s", "phone")
    await until(lambda: len(heard) == 2)
    assert heard == [joined("1", {"name": "Änn\n"}), left("1", {"name": "Änn\n"})]
    await store.ajoin_all([Member("s", "desk", "2")])
    await there.ajoin_all([Member("s", "pad", "3", "x" * 9000)])
    await until(lambda: len(heard) == 4)
    assert heard[2:] == [joined("2"), joined("3", "x" * 9000)]


async def test_expiry_in_another_process_arrives_at_once(
    slow: tuple[ModelPresenceStore, list[Any]], make: MakePresence, clock: Clock
) -> None:
    store, heard = slow
    await store.ajoin_all([Member("s", "phone", "1")])
    there = make(poll_interval=3600)
    elapse(there, clock, TTL - 1)
    clock.advance(2)
    assert await there.aexpire() == [left("1")]
    await until(lambda: len(heard) == 2)
    assert heard == [joined("1"), left("1")]


async def test_streams_and_presence_of_a_process_share_a_connection(alias: str, make: MakePresence) -> None:
    presence = make(poll_interval=3600)
    streams = ModelStreamStore(presence.settings)
    heard: list[Any] = []
    listeners = [presence.listen(heard.append), streams.listen(heard.append)]
    for listener in listeners:
        await listener.subscribe("s")
    with connect(alias) as connection:
        await until(lambda: count_listening(connection))
        other = make(poll_interval=3600)
        await other.ajoin_all([Member("s", "phone", "1")])
        await until(lambda: heard == [joined("1")])
        await ModelStreamStore(other.settings).aappend([("s", Message("2"))])
        await until(lambda: len(heard) == 2)
        # Connections of earlier tests may still be closing.
        await until(lambda: count_listening(connection) == 1)
        # The connection is used until the last listener has been closed.
        await listeners[0].close()
        await ModelStreamStore(other.settings).aappend([("s", Message("3"))])
        await until(lambda: len(heard) == 3)
        await listeners[1].close()
        await until(lambda: not count_listening(connection))
    streams.close()


def connect(alias: str) -> psycopg.Connection:
    """Return a connection to the test database that belongs to no store."""
    return psycopg.connect(**connections[alias].get_connection_params(), autocommit=True)


def count_listening(connection: psycopg.Connection) -> int:
    """Return how many connections of this package LISTEN in the test database."""
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'reliable_cable LISTEN'"
    )
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
