"""If a SQLite file is restored from a backup between the two queries of a read, clients learn of real losses only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db.backends.signals import connection_created

from reliable_cable import Channel
from reliable_cable.broadcasting import abroadcast
from reliable_cable.channel import registry
from reliable_cable.concurrency.threads import end_threads
from reliable_cable.conf import CableSettings
from reliable_cable.consumer import get_hub
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.model import ModelStreamStore
from tests.stores.conftest import until
from tests.stores.test_torn_reads import between_queries
from tests.support.databases import another_database
from tests.support.sqlite import copy_database

from .wire import Client, identifier


class Room(Channel, abstract=True):
    async def subscribed(self) -> None:
        self.stream_from("room")


ROOM = identifier("Room")


class File:
    """The SQLite file of the server. Another process broadcasts through it, too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._other = ModelStreamStore(CableSettings(database="file"))
        #: Functions for the next reads: each read calls one of them between its two queries.
        self.changes: list[Callable[[], object]] = []

    def watch(self, connection: Any, **_: Any) -> None:
        """Make the reads of a new database connection call the functions in `changes`."""
        if connection.alias == "file":
            connection.execute_wrappers.append(between_queries(self.changes))

    def back_up(self) -> Callable[[], None]:
        """Back the file up, and return a function that restores the backup."""
        backup = self._path.with_suffix(".backup")
        copy_database(self._path, backup)
        return lambda: copy_database(backup, self._path)

    async def broadcast_elsewhere(self, *data: str) -> None:
        """Broadcast messages through a second store, as another process would."""
        await self._other.aappend([("room", Message(text)) for text in data])


@pytest.fixture
def file(tmp_path: Path, settings: Any, django_db_blocker: Any) -> Iterator[File]:
    settings.RELIABLE_CABLE = {"ENGINE": "database", "DATABASE": "file", "POLL_INTERVAL": 0.01, "PING_INTERVAL": 60}
    registry["Room"] = [Room]
    path = tmp_path / "db.sqlite3"
    made = File(path)
    with django_db_blocker.unblock(), another_database("file", NAME=str(path)):
        connection_created.connect(made.watch)
        yield made
        connection_created.disconnect(made.watch)
        end_threads(30)
    del registry["Room"]


async def received(client: Client) -> Any:
    """Return the next frame, after the repairs of all streams have ended."""
    frame = await client.receive()
    await until(lambda: all(stream.repair is None for stream in get_hub()._streams.values()))
    return frame


async def test_no_loss_is_told_if_the_epoch_continues(file: File) -> None:
    async with Client() as client:
        await client.subscribe(ROOM)
        await abroadcast("room", 1)
        first = await received(client)
        file.changes.append(file.back_up())
        # The server reads because of these messages. The restored backup lacks them, and no client has received them.
        await file.broadcast_elsewhere("2", "3")
        await until(lambda: not file.changes)
        await abroadcast("room", "after the restore")
        assert await client.receive() == {**first, "offset": 2, "message": "after the restore"}


async def test_a_new_epoch_is_told_if_a_received_message_is_gone(file: File) -> None:
    async with Client() as client:
        await client.subscribe(ROOM)
        await abroadcast("room", 1)
        await received(client)
        restore = file.back_up()
        await abroadcast("room", 2)
        second = await received(client)
        file.changes.append(restore)
        await file.broadcast_elsewhere("3")
        assert await client.receive() == {"type": "reject_history", "identifier": ROOM}
        await abroadcast("room", "after the restore")
        after = await client.receive()
        assert (after["message"], after["offset"]) == ("after the restore", 1)
        assert after["epoch"] != second["epoch"]
