"""Pages that are loaded during writes: each message must be in the data of a page, or be sent after its position.

These tests call a message "gap" if it is in neither place, and "repeat" if it is in both.

A page shows the counter of each writer. A writer commits its next value, and broadcasts it in the same transaction.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connections, transaction
from django.db.backends.utils import CursorWrapper

from reliable_cable import PagePosition, aposition, broadcast, history, position
from reliable_cable.models import OutboxEntry
from reliable_cable.protocol.positions import beginning_of
from reliable_cable.stores.engine import Engine
from reliable_cable.stores.streams.base import NOWHERE
from reliable_cable.stores.streams.model import ModelStreamStore
from tests.stores.conftest import DURABLE, EVERY_STORE, POSTGRES, REDIS_STORES, SQLITE, with_own_connection
from tests.support.examples import examples

#: The minimum number of page loads in a test, the number of page loads for each commit, and the names of the writers.
LOADS = examples(500)
LOADS_PER_COMMIT = 4
WRITERS = ("a", "b")

Counters = dict[str, int]
Way = Callable[[str], AbstractContextManager[Any]]
Ways = tuple[tuple[Any, Way], ...]


def autocommit(database: str) -> AbstractContextManager[Any]:
    """Run the block, which loads a page, without a transaction."""
    return nullcontext()


@contextmanager
def deferred(database: str) -> Iterator[None]:
    """Run the block in a transaction of SQLite that begins without a lock, as with Django's defaults."""
    connection: Any = connections[database]
    connection.ensure_connection()
    former, connection.transaction_mode = connection.transaction_mode, "DEFERRED"
    try:
        with transaction.atomic(using=database):
            yield
    finally:
        connection.transaction_mode = former


@contextmanager
def isolated(level: str, database: str) -> Iterator[None]:
    """Run the block in a transaction of PostgreSQL with this isolation level."""
    with transaction.atomic(using=database):
        execute(database, f"SET TRANSACTION ISOLATION LEVEL {level}")
        yield


def execute(database: str, sql: str) -> None:
    cursor: CursorWrapper
    with connections[database].cursor() as cursor:
        cursor.execute(sql)


read_committed, repeatable_read, serializable = (
    partial(isolated, level) for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
)

REDIS = [pytest.param(*param.values, id=param.id, marks=[*param.marks, *SQLITE.marks]) for param in REDIS_STORES[:1]]


def ways(*ways: tuple[Any, Way]) -> pytest.MarkDecorator:
    """Parametrize a test by engine, and by the way in which a page is loaded."""
    params = [
        pytest.param(*alias.values, way, id=f"{alias.id}-{getattr(way, '__name__', 'redis')}", marks=alias.marks)
        if not isinstance(way, partial)
        else pytest.param(*alias.values, way, id=f"{alias.id}-{way.args[0]}".replace(" ", "-"), marks=alias.marks)
        for alias, way in ways
    ]
    return pytest.mark.parametrize(("alias", "way"), params, indirect=["alias"])


#: Ways to load a page so that its position and its data come from one snapshot.
ONE_SNAPSHOT: Ways = ((SQLITE, deferred), (POSTGRES, repeatable_read), (POSTGRES, serializable))
#: Ways to load a page whose data may be newer than its position.
TWO_SNAPSHOTS: Ways = (
    (SQLITE, autocommit),
    (POSTGRES, autocommit),
    (POSTGRES, read_committed),
    *((r, autocommit) for r in REDIS),
)


@pytest.fixture
def database(engine: Engine, alias: str) -> str:
    """The alias of the database with the data of the pages. In the data, each writer has one row."""
    name = alias if alias in connections.settings else "default"
    for writer in WRITERS:
        Group.objects.using(name).create(name=f"{writer}:0")
    return name


def commit(database: str, writer: str, number: int) -> None:
    """Commit the next value of a writer, with its broadcast."""
    with transaction.atomic(using=database):
        Group.objects.using(database).filter(name=f"{writer}:{number - 1}").update(name=f"{writer}:{number}")
        broadcast("page", [writer, number])


def elsewhere(call: Callable[[], Any]) -> Any:
    """Call a function in another thread, with other connections."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(with_own_connection(call)).result()


def read_data(database: str) -> Counters:
    names = Group.objects.using(database).values_list("name", flat=True)
    return {writer: int(number) for writer, _, number in (name.partition(":") for name in names)}


@dataclass(frozen=True)
class Load:
    """A page: its position, its data, and the messages that were committed and not numbered when it was loaded."""

    at: PagePosition
    data: Counters
    waiting: frozenset[str] = frozenset()


def load(database: str, between: Callable[[], Any] = lambda: None) -> Load:
    """Load a page: first its position, then its data."""
    at = position("page")
    between()
    return Load(at, read_data(database))


def load_wrongly(database: str, between: Callable[[], Any] = lambda: None) -> Load:
    """Load a page in the wrong order: first its data, then its position."""
    data = read_data(database)
    between()
    return Load(position("page"), data)


def gaps_and_repeats(page: Load, numbers: list[tuple[int, str, int]]) -> tuple[set[str], set[str]]:
    """Return the numbers that are in neither the data nor the messages after the position, and those in both."""
    gaps, repeats = set(), set()
    for offset, writer, number in numbers:
        in_data, sent = number <= page.data[writer], offset > page.at.offset
        if in_data and sent:
            repeats.add(f"{writer}:{number}")
        elif not in_data and not sent:
            gaps.add(f"{writer}:{number}")
    return gaps, repeats


def result(page: Load) -> tuple[set[str], set[str]]:
    return gaps_and_repeats(page, sent_messages())


def sent_messages() -> list[tuple[int, str, int]]:
    return [(entry.position.offset, *entry.data) for entry in history("page", limit=100_000)]


@ways(*ONE_SNAPSHOT, (DURABLE, deferred))
def test_in_one_snapshot_a_commit_between_position_and_data_is_sent_once(database: str, way: Way) -> None:
    commit(database, "a", 1)
    for order in (load, load_wrongly):
        number = read_data(database)["a"] + 1
        with way(database):
            page = order(database, lambda: elsewhere(lambda: commit(database, "a", number)))  # noqa: B023 - called here
        assert page.data["a"] == number - 1
        assert result(page) == (set(), set())


@ways(*TWO_SNAPSHOTS, (DURABLE, autocommit))
def test_without_one_it_is_sent_twice_and_in_the_wrong_order_never(database: str, way: Way) -> None:
    commit(database, "a", 1)
    with way(database):
        page = load(database, lambda: elsewhere(lambda: commit(database, "a", 2)))
    assert result(page) == (set(), {"a:2"})
    with way(database):
        page = load_wrongly(database, lambda: elsewhere(lambda: commit(database, "a", 3)))
    assert result(page) == ({"a:3"}, set())


@ways(*ONE_SNAPSHOT)
def test_a_message_that_was_committed_and_not_numbered_is_sent_although_the_page_has_it(
    database: str, way: Way, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(database, "a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(ModelStreamStore, "_number_after_commit", lambda self, names: None)
        commit(database, "a", 2)
    with way(database):
        page = load(database)
    commit(database, "a", 3)
    assert page.data["a"] == 2
    assert result(page) == (set(), {"a:2"})


@ways(*((redis, deferred) for redis in REDIS))
def test_with_redis_a_snapshot_that_is_older_than_the_position_has_a_gap(database: str, way: Way) -> None:
    commit(database, "a", 1)
    with way(database):
        Group.objects.using(database).exists()  # this begins the snapshot, as the query for the user of a request does
        elsewhere(lambda: commit(database, "a", 2))
        page = load(database)
    assert result(page) == ({"a:2"}, set())
    at = position("page")  # the remedy: read the position before the transaction begins
    with way(database):
        Group.objects.using(database).exists()
        elsewhere(lambda: commit(database, "a", 3))
        page = Load(at, read_data(database))
    assert result(page) == (set(), set())


@pytest.mark.parametrize("alias", EVERY_STORE, indirect=True)
async def test_a_stream_that_does_not_exist_has_the_lineage_that_the_hub_compares(engine: Engine, alias: str) -> None:
    at = await aposition("never")
    (lineage,) = await engine.streams.alineages(["never"])
    assert (at, at.named) == (NOWHERE, beginning_of(lineage))
    found = PagePosition.parse(str(at), "never")
    assert found is not None
    assert (found, found.named) == (NOWHERE, beginning_of(lineage))
    assert bool(lineage) == (alias not in ("memory", "default", "durable"))


@ways(*ONE_SNAPSHOT, *TWO_SNAPSHOTS)
def test_thousands_of_page_loads_beside_writers_have_no_gap(database: str, way: Way, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "HISTORY_SIZE": 100_000}
    one_snapshot = way in (deferred, repeatable_read, serializable)
    done, turns = threading.Event(), threading.Semaphore(0)

    def write(writer: str) -> None:
        for number in count(1):
            turns.acquire()
            if done.is_set():
                return
            commit(database, writer, number)

    def load_with_outbox() -> Load:
        page = load(database)
        if not one_snapshot:
            return page
        waiting = OutboxEntry.objects.using(database).values_list("data", flat=True)
        return Load(page.at, page.data, frozenset(waiting))

    def load_pages() -> list[Load]:
        pages: list[Load] = []
        # The page loads go on until each writer has committed some messages.
        while len(pages) < LOADS or min(pages[-1].data.values()) < 20:
            if len(pages) % LOADS_PER_COMMIT == 0:
                turns.release()
            with way(database):
                pages.append(load_with_outbox())
        return pages

    with ThreadPoolExecutor(len(WRITERS) + 1) as pool:
        writers = [pool.submit(with_own_connection(partial(write, writer))) for writer in WRITERS]
        try:
            pages = pool.submit(with_own_connection(load_pages)).result()
        finally:
            done.set()
            turns.release(len(WRITERS))
        for future in writers:
            future.result()
    numbers = sent_messages()
    assert [offset for offset, _, _ in numbers] == list(range(1, len(numbers) + 1))
    for page in pages:
        gaps, repeats = gaps_and_repeats(page, numbers)
        assert gaps == set()
        if one_snapshot:
            # A message may be a repeat only if it was committed and not yet numbered when the page was loaded.
            assert repeats <= {"{}:{}".format(*data) for data in map(parse, page.waiting)}


def parse(data: str) -> tuple[str, int]:
    writer, number = data.strip("[]").split(",")
    return writer.strip(' "'), int(number)
