"""When sessions are written, read and looked after, and what a store that fails or is slow changes."""

from __future__ import annotations

import asyncio
import logging

import pytest

from reliable_cable.hub import session_records, session_writer
from reliable_cable.hub.session_records import SessionRecords
from reliable_cable.stores.sessions.base import SessionRecord

from .sessions import Session, Store, ann, number, until_kept


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_writer, "SAVE_DELAY", 0.001)
    monkeypatch.setattr(session_writer, "RETRY_DELAY", 0.002)


class TestWriting:
    async def test_what_changed_is_written_soon_and_together(self) -> None:
        service = SessionRecords(store := Store())
        sessions = [Session(sid) for sid in "abc"]
        for session in sessions:
            service.add(session)
            service.changed(session)
            service.changed(session)
        assert store.saves == []
        await until_kept(service, 0, "c")
        assert [set(records) for records in store.saves] == [{"a", "b", "c"}]

    async def test_or_at_once_if_somebody_waits(self) -> None:
        service = SessionRecords(Store())
        service.add(session := Session("a"))
        session.number = 1
        await service.save(session)
        assert await number(service) == 1

    async def test_who_waits_at_the_same_time_waits_for_few_writes(self) -> None:
        service = SessionRecords(store := Store())
        sessions = [Session(str(n)) for n in range(100)]
        for session in sessions:
            service.add(session)
        store.open.clear()
        waiting = asyncio.gather(*(service.save(session) for session in sessions))
        await store.tried.wait()
        store.open.set()
        await waiting
        assert len(store.saves) <= 2
        assert {sid for records in store.saves for sid in records} == {session.sid for session in sessions}

    async def test_the_last_record_of_a_session_is_kept_as_it_was(self) -> None:
        service = SessionRecords(Store())
        service.add(session := Session("a"))
        session.number = 5
        await service.drop(session)
        session.number = 6
        service.changed(session)
        await service.save(session)
        assert await number(service) == 5

    async def test_without_a_time_to_live_nothing_is_written(self) -> None:
        service = SessionRecords(store := Store(sessions_ttl=0))
        service.add(session := Session("a"))
        await service.save(session)
        await service.drop(session)
        assert await service.load("a", ann) is None
        assert store.saves == []

    async def test_a_record_that_cannot_be_made_costs_only_its_own_session(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(Session):
            def record(self) -> SessionRecord:
                raise ValueError("no record")

        service = SessionRecords(Store())
        service.add(broken := Broken("b"))
        service.add(session := Session("a"))
        service.changed(broken)
        await service.save(session)
        assert await number(service) == 0
        assert "no record" in caplog.text


class TestAStoreThatFails:
    async def test_is_tried_until_it_is_back(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "reliable_cable")
        service = SessionRecords(store := Store())
        service.add(session := Session("a"))
        store.down = True
        session.number = 1
        service.changed(session)
        for _ in range(3):
            store.tried.clear()
            await store.tried.wait()
        session.number = 2  # the newest is written
        store.down = False
        await until_kept(service, 2)
        await asyncio.sleep(0)
        assert [record.message for record in caplog.records] == [
            "Session records cannot be written; retrying every 0.002 s: down",
            "The session store works again.",
        ], "once for an outage"

    async def test_keeps_nobody_waiting_who_comes_back_or_leaves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_records, "LOAD_TIMEOUT", 0.001)
        monkeypatch.setattr(session_writer, "FLUSH_TIMEOUT", 0.001)
        monkeypatch.setattr(session_writer, "RETRY_DELAY", 60)
        service = SessionRecords(store := Store())
        service.add(session := Session("a"))
        store.open.clear()
        async with asyncio.timeout(5):
            assert await service.load("b", ann) is None
            await service.take_over(session, "b", session.record())
            await service.drop(session)
        store.open.set()

    async def test_gets_the_sessions_that_ended_meanwhile(self) -> None:
        service = SessionRecords(store := Store())
        service.add(session := Session("a"))
        await service.save(session)
        store.down = True
        session.number = 7
        await service.drop(session)
        assert await number(service) == 0
        store.down = False
        await until_kept(service, 7)

    async def test_but_not_those_that_would_have_expired(self) -> None:
        service = SessionRecords(store := Store(sessions_ttl=0.02))
        service.add(session := Session("a"))
        store.down = True
        await service.drop(session)
        await asyncio.sleep(0.03)  # its time to live
        store.down = False
        store.tried.clear()
        await store.tried.wait()
        assert store.saves == []

    async def test_deletes_who_was_sent_away_when_it_is_back(self) -> None:
        service = SessionRecords(store := Store())
        service.add(session := Session("a"))
        await service.save(session)
        store.down = True
        service.void(session)
        assert await service.load("a", ann) is None
        store.down = False
        await until_kept(service, None)

    async def test_with_another_error_is_not_tried_again(self, caplog: pytest.LogCaptureFixture) -> None:
        class Odd(Session):
            def record(self) -> SessionRecord:
                return SessionRecord(ann, 0, {"number": object()})

        service = SessionRecords(store := Store())
        service.add(session := Odd("a"))
        await service.save(session)
        assert "could not be written" in caplog.text
        assert len(store.saves) == 1


class TestTheEffectOfAChange:
    """The result of `save`: whether the client may see the effect of a change."""

    async def test_waits_until_the_change_is_saved(self) -> None:
        service = SessionRecords(store := Store())
        service.add(session := Session("a"))
        await service.save(session)
        store.down = True
        session.number = 1
        saving = asyncio.create_task(service.save(session))
        for _ in range(3):
            store.tried.clear()
            await store.tried.wait()
        assert not saving.done()
        assert await number(service) == 0
        store.down = False
        assert await saving
        assert await number(service) == 1

    async def test_waits_for_the_store_that_is_known_to_fail(self) -> None:
        service = SessionRecords(store := Store())
        service.add(session := Session("a"))
        service.add(other := Session("b"))
        await service.save(session)
        await service.save(other)
        store.down = True
        service.changed(other)
        for _ in range(2):
            store.tried.clear()
            await store.tried.wait()
        session.number = 1
        saving = asyncio.create_task(service.save(session))
        store.tried.clear()
        await store.tried.wait()
        assert not saving.done()
        store.down = False
        assert await saving
        assert await number(service) == 1

    @pytest.mark.parametrize("fault", ["fails", "hangs"])
    async def test_is_not_to_be_seen_if_the_change_cannot_be_saved(
        self, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service = SessionRecords(store := Store())
        service.add(session := Session("a"))
        assert await service.save(session)
        monkeypatch.setattr(session_writer, "SAVE_TIMEOUT", 0.05)
        store.down = fault == "fails"
        if fault == "hangs":
            store.open.clear()
        session.number = 1
        assert not await service.save(session)
        assert await number(service) == 0
        store.open.set()

    async def test_is_not_to_be_seen_if_the_record_cannot_be_written(self) -> None:
        class Odd(Session):
            def record(self) -> SessionRecord:
                return SessionRecord(ann, 0, {"number": object()})

        service = SessionRecords(Store())
        service.add(session := Odd("a"))
        assert not await service.save(session)

    async def test_does_not_wait_where_the_store_has_no_older_record(self) -> None:
        # A restore finds no record, and so no old one.
        service = SessionRecords(store := Store())
        store.down = True
        service.add(first := Session("a"))
        service.changed(first)
        for _ in range(2):
            store.tried.clear()
            await store.tried.wait()
        service.add(session := Session("b"))
        service.changed(session)
        for _ in range(2):
            store.tried.clear()
            await store.tried.wait()
        session.number = 1
        async with asyncio.timeout(5):
            assert await service.save(session)
        store.down = False
        await until_kept(service, 1, "b")


class TestReading:
    async def test_the_newest_record_is_read(self) -> None:
        service = SessionRecords(Store())
        service.add(session := Session("a"))
        await service.save(session)
        session.number = 3
        service.changed(session)
        record = await service.load("a", ann)
        assert record is not None
        assert record.data["number"] == 3

    async def test_a_store_that_fails_knows_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        service = SessionRecords(store := Store())
        store.down = True
        assert await service.load("a", ann) is None
        assert await service.load("a", ann) is None
        assert len(caplog.records) == 1
        assert "Traceback" not in caplog.text

    async def test_those_who_are_back_at_the_same_time_are_read_together(self) -> None:
        service = SessionRecords(store := Store())
        for sid in "abc":
            service.add(session := Session(sid))
            await service.save(session)
            await service.drop(session)
        found = await asyncio.gather(*(service.load(sid, ann) for sid in ("a", "nobody", "c", "b")))
        assert [record and record.data["number"] for record in found] == [0, None, 0, 0]
        assert store.loads == [["a", "nobody", "c", "b"]]

    async def test_a_store_that_fails_fails_for_all_of_them(self, caplog: pytest.LogCaptureFixture) -> None:
        service = SessionRecords(store := Store())
        store.down = True
        assert await asyncio.gather(*(service.load(sid, ann) for sid in "abc")) == [None] * 3
        assert len(caplog.records) == 1

    async def test_one_that_goes_meanwhile_does_not_disturb_the_others(self) -> None:
        service = SessionRecords(store := Store())
        service.add(session := Session("b"))
        await service.save(session)
        await service.drop(session)
        store.open.clear()
        store.tried.clear()
        tasks = [asyncio.create_task(service.load(sid, ann)) for sid in "ab"]
        await store.tried.wait()
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        store.open.set()
        assert await tasks[1] is not None

    async def test_many_writes_that_are_waited_for_are_few(self) -> None:
        service = SessionRecords(store := Store())
        sessions = [Session(f"s{number}") for number in range(50)]
        for session in sessions:
            service.add(session)
        await asyncio.gather(*(service.save(session) for session in sessions))
        assert sum(len(saved) for saved in store.saves) == 50
        assert len(store.saves) <= 2
