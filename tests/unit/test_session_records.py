"""Session records are written and loaded, even by a store that fails or is slow at times."""

from __future__ import annotations

import asyncio
import logging
from unittest.mock import AsyncMock

import pytest

from reliable_cable.hub import session_records, session_writer
from reliable_cable.hub.session_records import SessionRecords
from reliable_cable.stores.sessions.base import SessionRecord

from .sessions import Session, Store, ann, number, until_kept


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_writer, "SAVE_DELAY", 0.001)
    monkeypatch.setattr(session_writer, "BACKGROUND_RETRY_DELAY", 0.002)


class Unencodable(Session):
    def record(self) -> SessionRecord:
        return SessionRecord(ann, 0, {"number": object()})


async def saved() -> tuple[SessionRecords, Store, Session]:
    """Return the records of one session, the store that has its record, and the session."""
    records = SessionRecords(store := Store())
    records.add(session := Session("a"))
    await records.save(session)
    return records, store, session


class TestWriting:
    async def test_changed_sessions_are_written_soon_in_one_call(self) -> None:
        records = SessionRecords(store := Store())
        sessions = [Session(sid) for sid in "abc"]
        for session in sessions:
            records.add(session)
            records.changed(session)
            records.changed(session)
        assert store.saves == []
        await until_kept(records, 0, "c")
        assert [set(saved) for saved in store.saves] == [{"a", "b", "c"}]

    async def test_save_writes_at_once(self) -> None:
        records = SessionRecords(Store())
        records.add(session := Session("a"))
        session.number = 1
        await records.save(session)
        assert await number(records) == 1

    async def test_simultaneous_saves_share_two_writes(self) -> None:
        records = SessionRecords(store := Store())
        sessions = [Session(str(n)) for n in range(100)]
        for session in sessions:
            records.add(session)
        store.open.clear()
        waiting = asyncio.gather(*(records.save(session) for session in sessions))
        await store.tried.wait()
        store.open.set()
        await waiting
        assert len(store.saves) <= 2
        assert {sid for saved in store.saves for sid in saved} == {session.sid for session in sessions}

    async def test_a_dropped_session_is_not_written_again(self) -> None:
        records = SessionRecords(Store())
        records.add(session := Session("a"))
        session.number = 5
        await records.drop(session)
        session.number = 6
        records.changed(session)
        await records.save(session)
        assert await number(records) == 5

    async def test_without_a_time_to_live_nothing_is_stored(self) -> None:
        records = SessionRecords(store := Store(sessions_ttl=0))
        records.add(session := Session("a"))
        await records.save(session)
        records.void(session)
        await records.drop(session)
        assert await records.load("a", ann) is None
        assert store.saves == []

    async def test_a_record_that_cannot_be_created_affects_only_its_own_session(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(Session):
            def record(self) -> SessionRecord:
                raise ValueError("no record")

        records = SessionRecords(Store())
        records.add(broken := Broken("b"))
        records.add(session := Session("a"))
        records.changed(broken)
        await records.save(session)
        await records.drop(broken)
        assert await number(records) == 0
        assert "no record" in caplog.text

    async def test_a_record_that_cannot_be_encoded_affects_only_its_own_session(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        records = SessionRecords(Store())
        sessions = [Session("a"), Unencodable("b"), Session("c")]
        for session in sessions:
            records.add(session)
        assert await asyncio.gather(*(records.save(session) for session in sessions)) == [True, False, True]
        assert [await number(records, sid) for sid in "abc"] == [0, None, 0]
        assert caplog.text.count("A session record could not be written") == 1

    async def test_many_saves_are_few_writes(self) -> None:
        records = SessionRecords(store := Store())
        sessions = [Session(f"s{number}") for number in range(50)]
        for session in sessions:
            records.add(session)
        await asyncio.gather(*(records.save(session) for session in sessions))
        assert sum(len(saved) for saved in store.saves) == 50
        assert len(store.saves) <= 2

    async def test_large_records_are_written_in_several_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_writer, "SAVE_BYTES", 250)
        records = SessionRecords(store := Store())
        for sid in "abcdefg":
            records.add(session := Session(sid, size=100))
            records.changed(session)
        await until_kept(records, 0, "g")
        assert [set(saved) for saved in store.saves] == [set("abc"), set("def"), set("g")]


class TestFailingStore:
    async def test_is_retried_until_it_works_again(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "reliable_cable")
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        store.down = True
        session.number = 1
        records.changed(session)
        for _ in range(3):
            store.tried.clear()
            await store.tried.wait()
        session.number = 2  # the newest record must be written
        store.down = False
        await until_kept(records, 2)
        await asyncio.sleep(0)
        assert [record.message for record in caplog.records] == [
            "Session records cannot be written; retrying every 0.002 s: down",
            "The session store works again.",
        ], "one line of each kind for an outage"

    async def test_does_not_block_clients_that_return_or_leave(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_records, "LOAD_TIMEOUT", 0.001)
        monkeypatch.setattr(session_writer, "FLUSH_TIMEOUT", 0.001)
        monkeypatch.setattr(session_writer, "BACKGROUND_RETRY_DELAY", 60)
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        store.open.clear()
        async with asyncio.timeout(30):
            assert await records.load("b", ann) is None
            await records.take_over(session, "b", session.record())
            await records.drop(session)
        store.open.set()

    async def test_does_not_block_a_client_that_leaves_while_it_hangs(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(session_writer, "FLUSH_TIMEOUT", 0.001)
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        store.open.clear()
        async with asyncio.timeout(30):
            await records.drop(session)
        assert "the store does not respond" in caplog.text
        store.open.set()
        await until_kept(records, 0)

    async def test_receives_the_records_of_sessions_that_ended_meanwhile(self) -> None:
        records, store, session = await saved()
        store.down = True
        session.number = 7
        await records.drop(session)
        assert await number(records) == 0
        store.down = False
        await until_kept(records, 7)

    async def test_does_not_receive_records_that_would_have_expired(self) -> None:
        records = SessionRecords(store := Store(sessions_ttl=0.02))
        records.add(session := Session("a"))
        store.down = True
        await records.drop(session)
        await asyncio.sleep(0.03)  # longer than the time to live of the record
        store.down = False
        store.tried.clear()
        await store.tried.wait()
        assert store.saves == []

    async def test_does_not_receive_more_bytes_than_may_be_kept(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(session_writer, "MAX_KEPT_SIZE", 250)
        records = SessionRecords(store := Store())
        store.down = True
        for sid in "abcd":
            records.add(session := Session(sid, size=100))
            await records.drop(session)
        await records.flush()
        store.tried.clear()
        await store.tried.wait()
        store.down = False
        await until_kept(records, 0, "d")
        assert await number(records, "c") == 0
        assert await number(records, "a") is None
        assert "session records are dropped, because more than 250 bytes are pending" in caplog.text

    async def test_deletes_the_record_of_a_voided_session_when_it_works_again(self) -> None:
        records, store, session = await saved()
        store.down = True
        records.void(session)
        assert await records.load("a", ann) is None
        store.down = False
        await until_kept(records, None)

    async def test_is_not_retried_after_an_unexpected_error(self, caplog: pytest.LogCaptureFixture) -> None:
        records = SessionRecords(Store())
        records.add(session := Unencodable("a"))
        await records.save(session)
        assert "could not be written" in caplog.text
        assert not records.is_pending("a")

    async def test_continues_after_an_unexpected_error_of_the_store(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        records.add(other := Session("b"))
        with monkeypatch.context() as broken:
            broken.setattr(store, "adelete", AsyncMock(side_effect=ValueError("odd")))
            records.void(other)
            assert not await records.save(session)
        assert "could not be written" in caplog.text
        assert await records.save(session)


class TestSave:
    """`save` returns whether the client may be sent the result of a change."""

    async def test_waits_until_the_record_is_written(self) -> None:
        records, store, session = await saved()
        store.down = True
        session.number = 1
        saving = asyncio.create_task(records.save(session))
        for _ in range(3):
            store.tried.clear()
            await store.tried.wait()
        assert not saving.done()
        assert await number(records) == 0
        store.down = False
        assert await saving
        assert await number(records) == 1

    async def test_waits_for_a_store_that_is_known_to_be_failing(self) -> None:
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        records.add(other := Session("b"))
        await records.save(session)
        await records.save(other)
        store.down = True
        records.changed(other)
        for _ in range(2):
            store.tried.clear()
            await store.tried.wait()
        session.number = 1
        saving = asyncio.create_task(records.save(session))
        store.tried.clear()
        await store.tried.wait()
        assert not saving.done()
        store.down = False
        assert await saving
        assert await number(records) == 1

    @pytest.mark.parametrize("fault", ["fails", "hangs"])
    async def test_returns_false_if_the_record_cannot_be_written_in_time(
        self, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        assert await records.save(session)
        monkeypatch.setattr(session_writer, "SAVE_TIMEOUT", 0.05)
        store.down = fault == "fails"
        if fault == "hangs":
            store.open.clear()
        session.number = 1
        assert not await records.save(session)
        assert await number(records) == 0
        store.open.set()

    async def test_returns_false_if_the_record_is_not_valid(self) -> None:
        class Odd(Session):
            def record(self) -> SessionRecord:
                return SessionRecord(ann, 0, {"number": object()})

        records = SessionRecords(Store())
        records.add(session := Odd("a"))
        assert not await records.save(session)

    async def test_does_not_wait_if_the_store_has_no_older_record(self) -> None:
        # A restore would find no record at all, so it cannot bring back an older state.
        records = SessionRecords(store := Store())
        store.down = True
        records.add(first := Session("a"))
        records.changed(first)
        for _ in range(2):
            store.tried.clear()
            await store.tried.wait()
        records.add(session := Session("b"))
        records.changed(session)
        for _ in range(2):
            store.tried.clear()
            await store.tried.wait()
        session.number = 1
        async with asyncio.timeout(30):
            assert await records.save(session)
        store.down = False
        await until_kept(records, 1, "b")


class TestLoad:
    async def test_returns_the_newest_record(self) -> None:
        records = SessionRecords(Store())
        records.add(session := Session("a"))
        await records.save(session)
        session.number = 3
        records.changed(session)
        record = await records.load("a", ann)
        assert record is not None
        assert record.data["number"] == 3

    async def test_returns_none_while_the_store_is_failing(self, caplog: pytest.LogCaptureFixture) -> None:
        records = SessionRecords(store := Store())
        store.down = True
        assert await records.load("a", ann) is None
        assert await records.load("a", ann) is None
        assert len(caplog.records) == 1
        assert "Traceback" not in caplog.text

    async def test_writes_the_record_first_although_the_store_was_failing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session_writer, "BACKGROUND_RETRY_DELAY", 60.0)
        records = SessionRecords(store := Store())
        records.add(session := Session("a"))
        session.number = 1
        store.down = True
        records.changed(session)
        await store.tried.wait()
        await records.drop(session)
        store.down = False
        record = await records.load("a", ann)
        assert record is not None
        assert record.data == {"number": 1}

    async def test_simultaneous_loads_share_one_call(self) -> None:
        records = SessionRecords(store := Store())
        for sid in "abc":
            records.add(session := Session(sid))
            await records.save(session)
            await records.drop(session)
        loaded = await asyncio.gather(*(records.load(sid, ann) for sid in ("a", "unknown", "c", "b")))
        assert [record and record.data["number"] for record in loaded] == [0, None, 0, 0]
        assert store.loads == [["a", "unknown", "c", "b"]]

    async def test_simultaneous_loads_all_return_none_while_the_store_is_failing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        records = SessionRecords(store := Store())
        store.down = True
        assert await asyncio.gather(*(records.load(sid, ann) for sid in "abc")) == [None] * 3
        assert len(caplog.records) == 1

    async def test_a_cancelled_load_does_not_affect_the_others(self) -> None:
        records = SessionRecords(store := Store())
        records.add(session := Session("b"))
        await records.save(session)
        await records.drop(session)
        store.open.clear()
        store.tried.clear()
        tasks = [asyncio.create_task(records.load(sid, ann)) for sid in "ab"]
        await store.tried.wait()
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        store.open.set()
        assert await tasks[1] is not None
