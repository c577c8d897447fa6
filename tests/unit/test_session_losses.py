"""Session records when their store loses data, and when the process stops."""

from __future__ import annotations

import asyncio

import pytest

from reliable_cable.hub import session_records as service_module
from reliable_cable.hub.session_records import SessionService

from .sessions import Session, Store, number, until_kept


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "SAVE_DELAY", 0.001)
    monkeypatch.setattr(service_module, "RETRY_DELAY", 0.002)


class TestLookingAfter:
    async def test_records_that_the_store_has_lost_are_written_again(self) -> None:
        service = SessionService(store := Store())
        for sid in "ab":
            service.add(session := Session(sid))
            await service.save(session)
        store.delete(["a"])
        await service.refresh()
        await until_kept(service, 0, "a")
        assert set(store.saves[-1]) == {"a"}

    async def test_what_is_still_to_be_written_was_not_lost(self) -> None:
        service = SessionService(store := Store())
        service.add(session := Session("a"))
        service.changed(session)
        await service.refresh()
        await until_kept(service, 0)
        assert len(store.saves) == 1

    async def test_a_store_is_known_to_have_lost_nothing_if_it_has_what_was_written_to_be_missed(self) -> None:
        service = SessionService(Store())
        service.add(session := Session("a"))
        assert not await service.refresh(), "nothing has been written yet"
        await service.save(session)
        assert await service.refresh()
        await service.save(session)
        assert await service.refresh(), "by another witness"

    async def test_a_loss_is_remembered_though_everything_was_written_again(self) -> None:
        service = SessionService(store := Store())
        service.add(session := Session("a"))
        await service.save(session)
        store.delete(list(store._records))
        await service.save(session)  # it has changed since
        await service.refresh()
        await service.save(session)
        assert not await service.refresh()

    async def test_a_loss_is_forgotten_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service_module, "LOSS_MEMORY", 0)
        service = SessionService(store := Store())
        service.add(session := Session("a"))
        await service.save(session)
        store.delete(list(store._records))
        await service.refresh()
        await service.save(session)
        assert await service.refresh()

    async def test_a_store_that_loses_nothing_needs_no_witness(self) -> None:
        store = Store()
        store.may_lose_data = False
        service = SessionService(store)
        service.add(session := Session("a"))
        await service.save(session)
        assert list(store._records) == ["a"]
        assert await service.refresh()

    async def test_a_store_that_may_have_lost_data_is_looked_at_soon(self) -> None:
        service = SessionService(store := Store())
        service.add(session := Session("a"))
        await service.save(session)
        store.delete(["a"])
        service.suspect()
        service.suspect()
        await until_kept(service, 0)

    async def test_all_are_touched_before_they_expire(self) -> None:
        service = SessionService(store := Store(sessions_ttl=0.03))
        service.add(session := Session("a"))
        await service.save(session)
        for _ in range(4):
            store.tried.clear()
            await store.tried.wait()
        await until_kept(service, 0)
        service.discard(session)


class TestStopping:
    async def test_what_is_changed_is_written_first(self) -> None:
        service = SessionService(Store())
        session = Session("a")
        service.add(session)
        session.number = 5
        service.changed(session)
        await service.stop()
        assert await number(service) == 5
        assert len(asyncio.all_tasks()) == 1, "only this test"

    async def test_a_store_that_fails_is_tried_once(self) -> None:
        store = Store()
        store.down = True
        service = SessionService(store)
        service.add(Session("a"))
        service.changed(Session("a"))
        await service.stop()
        assert store.tried.is_set()
        assert len(asyncio.all_tasks()) == 1, "only this test"
