"""Session records are written again after a loss of data, and changed records are written when the process exits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

import pytest

from reliable_cable.hub import session_losses, session_writer
from reliable_cable.hub.session_records import SessionRecords
from reliable_cable.stores.sessions.base import SessionRecord

from .sessions import Session, Store, ann, number, until_kept


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_losses, "CHECK_DELAY", 0.001)
    monkeypatch.setattr(session_writer, "SAVE_DELAY", 0.001)
    monkeypatch.setattr(session_writer, "BACKGROUND_RETRY_DELAY", 0.002)


async def until_logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until a message with this text has been logged."""
    caplog.set_level(logging.INFO, "reliable_cable")
    async with asyncio.timeout(30):
        while text not in caplog.text:  # noqa: ASYNC110 - a logger has no events
            await asyncio.sleep(0.001)


class TestRefresh:
    async def test_lost_records_are_written_again(self) -> None:
        records = SessionRecords(store := Store())
        for sid in "ab":
            records.add(session := Session(sid))
            await records.save(session)
        store.delete(["a"])
        await records.losses.refresh()
        await until_kept(records, 0, "a")
        assert set(store.saves[-1]) == {"a"}

    async def test_a_pending_record_does_not_count_as_lost(self) -> None:
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        records.changed(session)
        await records.losses.refresh()
        await until_kept(records, 0)
        assert len(store.saves) == 1

    async def test_a_store_that_has_the_witness_has_lost_nothing(self) -> None:
        records = SessionRecords(Store())
        records.add(session := Session("a"))
        assert not await records.losses.refresh(), "no witness has been written"
        await records.save(session)
        assert await records.losses.refresh()
        await records.save(session)
        assert await records.losses.refresh(), "the store has the next witness"

    async def test_a_loss_is_remembered_after_all_records_were_written_again(self) -> None:
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        await records.save(session)
        store.delete(list(store._records))
        await records.save(session)  # the record is written before the next check
        await records.losses.refresh()
        await records.save(session)
        assert not await records.losses.refresh()

    async def test_a_loss_is_forgotten_after_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_losses, "LOSS_MEMORY", 0)
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        await records.save(session)
        store.delete(list(store._records))
        await records.losses.refresh()
        await records.save(session)
        assert await records.losses.refresh()

    async def test_a_witness_that_expired_without_live_sessions_is_no_loss(self) -> None:
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        await records.drop(session)
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - ending tasks set no event
            await asyncio.sleep(0)
        store.delete(list(store._records))
        records.add(session)
        await records.save(session)
        assert await records.losses.refresh()

    async def test_a_witness_that_was_not_written_because_of_an_unexpected_error_is_no_loss(self) -> None:
        class Odd(Session):
            def record(self) -> SessionRecord:
                return SessionRecord(ann, 0, {"number": object()})

        records = SessionRecords(Store())
        records.add(session := Session("a"))
        await records.save(session)
        assert await records.losses.refresh()
        records.add(odd := Odd("b"))
        await records.save(odd)  # in one write with the next witness
        records.discard(odd)
        assert await records.losses.refresh(), "the store still has the former witness"

    async def test_a_store_that_cannot_lose_data_gets_no_witness(self) -> None:
        store = Store()
        store.may_lose_data = False
        records = SessionRecords(store)
        records.add(session := Session("a"))
        await records.save(session)
        assert list(store._records) == ["a"]
        assert await records.losses.refresh()

    async def test_a_suspected_loss_is_checked_soon(self) -> None:
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        await records.save(session)
        store.delete(["a"])
        records.losses.suspect()
        records.losses.suspect()
        await until_kept(records, 0)

    async def test_records_are_refreshed_before_they_expire(self) -> None:
        records = SessionRecords(store := Store(sessions_ttl=0.03))
        records.add(session := Session("a"))
        await records.save(session)
        for _ in range(4):
            store.tried.clear()
            await store.tried.wait()
        await until_kept(records, 0)
        records.discard(session)

    async def test_a_failed_check_is_repeated_at_the_next_time(self, caplog: pytest.LogCaptureFixture) -> None:
        records = SessionRecords(store := Store(sessions_ttl=0.03))
        records.add(session := Session("a"))
        await records.save(session)
        store.down = True
        await until_logged(caplog, "Session records cannot be")
        store.down = False
        await until_logged(caplog, "works again")
        store.delete(["a"])
        await until_kept(records, 0)
        records.discard(session)

    async def test_an_unexpected_error_does_not_end_the_checks(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(sids: Collection[str]) -> set[str]:
            raise ValueError("no such table")

        records = SessionRecords(store := Store(sessions_ttl=0.03))
        records.add(session := Session("a"))
        await records.save(session)
        with monkeypatch.context() as patch:
            patch.setattr(store, "atouch", fail)
            await until_logged(caplog, "could not be checked")
        store.delete(["a"])
        await until_kept(records, 0)
        records.discard(session)

    async def test_no_task_remains_after_the_last_session(self) -> None:
        records = SessionRecords(Store())
        for _ in range(2):
            records.add(session := Session("a"))
            await records.drop(session)
            async with asyncio.timeout(30):
                while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - ending tasks set no event
                    await asyncio.sleep(0)


class TestStop:
    async def test_writes_changed_sessions_first(self) -> None:
        records = SessionRecords(Store())
        session = Session("a")
        records.add(session)
        session.number = 5
        records.changed(session)
        await records.stop()
        assert await number(records) == 5
        assert len(asyncio.all_tasks()) == 1, "only the task of this test"

    async def test_tries_a_failing_store_once(self) -> None:
        store = Store()
        store.down = True
        records = SessionRecords(store)
        records.add(Session("a"))
        records.changed(Session("a"))
        await records.stop()
        assert store.tried.is_set()
        assert len(asyncio.all_tasks()) == 1, "only the task of this test"

    async def test_cancels_loads(self) -> None:
        records = SessionRecords(store := Store())
        store.open.clear()
        loading = asyncio.create_task(records.load("a", ann))
        await store.tried.wait()
        await records.stop()
        loading.cancel()
        await asyncio.wait([loading])
        assert len(asyncio.all_tasks()) == 1, "only the task of this test"

    async def test_without_sessions_does_nothing(self) -> None:
        records = SessionRecords(store := Store())
        await records.stop()
        assert not store.tried.is_set()
