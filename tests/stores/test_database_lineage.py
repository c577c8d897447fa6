"""The lineage of a PostgreSQL database: after a failover or a recovery, former epochs end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

from reliable_cable import models
from reliable_cable.concurrency.threads import end_threads
from reliable_cable.conf import CableSettings
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.stores.streams.base import NOWHERE, Advanced, Message, StreamEvent
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_polling import SeenIds
from tests.stores.conftest import POSTGRES, MakeStore, until
from tests.stores.test_streams import append, kept
from tests.support.databases import another_database
from tests.support.postgres import PostgresServer, find_postgres


@pytest.mark.parametrize("alias", [POSTGRES], indirect=True)
class TestLineages:
    def test_streams_of_an_earlier_release_keep_their_epoch(self, store: ModelStreamStore, alias: str) -> None:
        (before,) = store.append([("a", Message("1"))])
        rows = models.Stream.objects.using(alias)
        lineage = rows.get().lineage
        rows.update(lineage="")
        assert store.append([("a", Message("2"))]) == [StreamPosition(before.epoch, 2)]
        assert rows.get().lineage == lineage != ""

    def test_an_epoch_of_another_lineage_ends_with_the_first_append(self, store: ModelStreamStore, alias: str) -> None:
        before = store.append([(name, Message("1")) for name in "abc"])
        models.Stream.objects.using(alias).filter(name__in="ab").update(lineage="1.00000001")
        after = store.append([(name, Message("2")) for name in "cba"])
        assert [position.offset for position in after] == [2, 1, 1]
        assert after[0].epoch == before[2].epoch
        assert not {position.epoch for position in after[1:]} & {position.epoch for position in before}
        assert kept(store, "a") == [(1, "2")]

    @pytest.mark.parametrize("in_transaction", [False, True])
    def test_readers_ignore_an_epoch_of_another_lineage(
        self, store: ModelStreamStore, make_store: MakeStore, alias: str, in_transaction: bool
    ) -> None:
        # A server that starts after the change must notice by itself that the epoch has ended.
        before = store.time()
        _, other = store.append([(name, Message("1")) for name in "ab"])
        models.Stream.objects.using(alias).filter(name="a").update(lineage="1.00000001")
        reader = make_store()
        with transaction.atomic(using=alias) if in_transaction else nullcontext():
            assert reader.read("a", after=0, limit=10) == StreamPage("", 0, 1)
            assert reader.position("a") == NOWHERE
            assert reader.poll("ab", SeenIds()).tails == {"b": other}
            assert reader.offset_since("a", before) is None
            assert reader.offset_since("b", before) == 0

    async def test_readers_announce_the_end_of_an_epoch(self, store: ModelStreamStore, alias: str) -> None:
        await store.aappend([("a", Message("1"))])
        events: list[StreamEvent] = []
        listener = ModelStreamStore(store.settings).listen(events.append)
        await listener.subscribe("a")
        await store._run(lambda: models.Stream.objects.using(alias).update(lineage="1.00000001"))
        # The first message may be announced meanwhile, because its notification is sent in the background.
        await until(lambda: Advanced("a") in events)
        await listener.close()

    def test_messages_in_the_outbox_survive_a_new_lineage(
        self, store: ModelStreamStore, alias: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        append(store, "1")
        monkeypatch.setattr(ModelStreamStore, "_number_after_commit", lambda self, names: None)
        with transaction.atomic(using=alias):
            store.append_on_commit([("a", Message("2"))], using=alias)
        models.Stream.objects.using(alias).update(lineage="1.00000001")
        assert append(store, "3") == [2]
        assert kept(store) == [(1, "2"), (2, "3")]

    async def test_it_is_announced(self, store: ModelStreamStore, alias: str) -> None:
        await store.aappend([("a", Message("1"))])
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await store._run(lambda: models.Stream.objects.using(alias).update(lineage="1.00000001"))
        await store.aappend([("a", Message("2"))])
        await until(lambda: len(heard) >= 2)
        await listener.close()
        assert heard[0] == Advanced("a")

    def test_a_server_that_does_not_permit_the_functions_works_without_a_lineage(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
            cursor.execute("CREATE ROLE app")
            cursor.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO app")
            cursor.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app")
            cursor.execute("SET SESSION AUTHORIZATION app")
        try:
            assert append(store, "1") == [1]
            assert append(store, "2") == [2]
            assert models.Stream.objects.using(alias).get().lineage == ""
        finally:
            with connections[alias].cursor() as cursor:
                cursor.execute("RESET SESSION AUTHORIZATION")
                cursor.execute("DROP OWNED BY app")
                cursor.execute("DROP ROLE app")
                cursor.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


class Cluster:
    """A PostgreSQL primary and a standby. The database alias `cluster` refers to one of them."""

    def __init__(self, binaries: Path) -> None:
        self.primary = PostgresServer(binaries)
        self.standby = PostgresServer(binaries)

    def start_primary(self) -> None:
        self.primary.initialize()
        self.primary.start()

    def start_standby(self) -> None:
        self.standby.copy(self.primary)
        self.standby.start()

    def lead_to(self, server: PostgresServer) -> None:
        """Make the alias refer to a server."""
        connections["cluster"].close()
        connections.settings["cluster"]["HOST"] = server.host


@pytest.fixture
def cluster(django_db_blocker: Any) -> Iterator[Cluster]:
    binaries = find_postgres()
    assert binaries is not None
    cluster = Cluster(binaries)
    try:
        cluster.start_primary()
        options = {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "postgres"}
        with django_db_blocker.unblock(), another_database("cluster", HOST=cluster.primary.host, **options):
            yield cluster
            # The threads must close their connections while the alias exists.
            assert end_threads(30)
    finally:
        cluster.primary.delete()
        cluster.standby.delete()


@pytest.mark.postgres
class TestFailover:
    def test_a_standby_that_lacks_entries_begins_a_new_epoch(self, cluster: Cluster) -> None:
        store = ModelStreamStore(CableSettings(database="cluster"))
        (*_, before) = store.append([("a", Message(str(number))) for number in range(40)])
        cluster.start_standby()
        cluster.standby.stop("fast")
        store.append([("a", Message(str(number))) for number in range(40, 50)])
        connections["cluster"].close()
        cluster.primary.stop()
        cluster.standby.start()
        cluster.standby.promote()
        cluster.lead_to(cluster.standby)
        assert store.position("a") == NOWHERE
        after = store.append([("a", Message("first")), ("a", Message("second"))])
        assert [position.offset for position in after] == [1, 2]
        assert {position.epoch for position in after} != {before.epoch}
        assert kept(store) == [(1, "first"), (2, "second")]
        assert store.append([("a", Message("third"))]) == [StreamPosition(after[0].epoch, 3)]
        store.close()

    def test_messages_from_before_it_may_be_lost_in_every_stream(self, cluster: Cluster) -> None:
        store = ModelStreamStore(CableSettings(database="cluster"))
        start = store.time()
        append(store, "1")
        assert store.offset_since("new", start) == 0
        lineage = store.read("new", after=0, limit=0).lineage
        assert store.read("a", after=0, limit=0).lineage == lineage != ""
        cluster.start_standby()
        cluster.standby.stop("fast")
        store.append([("new", Message("lost"))])
        connections["cluster"].close()
        cluster.primary.stop()
        cluster.standby.start()
        cluster.standby.promote()
        cluster.lead_to(cluster.standby)
        assert store.read("new", after=0, limit=0).lineage not in ("", lineage)
        assert store.read("a", after=0, limit=0).lineage not in ("", lineage)
        assert store.offset_since("new", start) is None
        assert store.offset_since("a", start) is None
        after = store.time()
        assert store.offset_since("a", after) == store.offset_since("new", after) == 0
        store.append([("new", Message("first"))])
        assert store.offset_since("new", start) is None
        assert store.offset_since("new", after) == 0
        store.close()

    def test_a_clean_switchover_costs_an_epoch_and_a_restart_does_not(self, cluster: Cluster) -> None:
        store = ModelStreamStore(CableSettings(database="cluster"))
        (before,) = store.append([("a", Message("1"))])
        connections["cluster"].close()
        cluster.primary.stop("fast")
        cluster.primary.start()
        assert store.append([("a", Message("2"))]) == [StreamPosition(before.epoch, 2)]
        cluster.start_standby()
        assert store.append([("a", Message("3"))]) == [StreamPosition(before.epoch, 3)]
        connections["cluster"].close()
        cluster.primary.stop("fast")
        cluster.standby.promote()
        cluster.lead_to(cluster.standby)
        (after,) = store.append([("a", Message("4"))])
        assert after.offset == 1
        assert after.epoch != before.epoch
        store.close()
