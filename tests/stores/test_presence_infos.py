"""The info of a member that has joined in several sessions."""

from __future__ import annotations

import pytest

from reliable_cable.stores.presence.base import Member, PresenceStore

from .conftest import PRESENCE_STORES, Clock
from .presence import TTL, Recorder, joined, left

pytestmark = pytest.mark.parametrize("alias", PRESENCE_STORES, indirect=True)


@pytest.fixture
def store(presence_store: PresenceStore) -> PresenceStore:
    return presence_store


async def test_a_session_that_joins_as_a_present_id_changes_nobody_elses_info(
    store: PresenceStore, recorder: Recorder
) -> None:
    store.join("s", "phone", "1", {"name": "Ann"})
    store.join("s", "impostor", "1", {"name": "Mallory"})
    store.join("s", "impostor", "1", {"name": "Eve"})
    assert store.info("s").records == {"1": {"name": "Ann"}}
    store.join("s", "phone", "1", {"name": "Anna"})
    assert store.info("s").records == {"1": {"name": "Anna"}}
    store.leave("s", "impostor")
    assert store.info("s").records == {"1": {"name": "Anna"}}
    assert await recorder.events() == [joined("1", {"name": "Ann"})]


async def test_a_session_takes_its_info_along_when_it_leaves(store: PresenceStore, recorder: Recorder) -> None:
    store.join("s", "impostor", "1", "Mallory")
    for session, info in {"phone": "Ann", "desk": "Anne", "pad": "Anna"}.items():
        store.join("s", session, "1", info)
    store.join("s", "desk", "1", "Annie")
    store.leave("s", "phone")
    store.leave("s", "impostor")
    assert store.info("s").records == {"1": "Annie"}, "of the earliest session that is left"
    store.join("s", "desk", "2", "Bob")
    assert store.info("s").records == {"1": "Anna", "2": "Bob"}
    assert store.leave("s", "pad") == [left("1", "Anna")]
    assert await recorder.events() == [joined("1", "Mallory"), joined("2", "Bob"), left("1", "Anna")]


@pytest.mark.parametrize("replaced", ["phone", "desk"])
async def test_a_session_takes_the_place_of_the_one_that_it_replaces(
    store: PresenceStore, recorder: Recorder, replaced: str
) -> None:
    for session in ("phone", "desk", "impostor"):
        store.join("s", session, "1", session)
    assert store.join_all([Member("s", "restored", "1", "restored", replaces=replaced)]) == []
    store.leave("s", "phone")
    assert store.info("s").records == {"1": "restored"}
    store.join("s", "restored", "1", "updated")
    store.leave("s", "desk")
    assert store.info("s").records == {"1": "updated"}
    store.leave("s", "restored")
    assert store.info("s").records == {"1": "impostor"}
    assert store.leave("s", "impostor") == [left("1", "impostor")]
    assert await recorder.events() == [joined("1", "phone"), left("1", "impostor")]


def test_a_session_replaces_only_a_member_with_the_same_id(store: PresenceStore) -> None:
    store.join("s", "phone", "1")
    store.join_all([Member("s", "desk", "2", replaces="phone"), Member("s", "pad", "3", replaces="unknown")])
    assert list(store.info("s").records or ()) == ["1", "2", "3"]
    assert store.refresh({"s": ["phone", "desk", "pad"]}).unknown == []


def test_a_session_that_joins_again_after_it_left_is_the_latest_one(store: PresenceStore) -> None:
    for session in ("phone", "desk", "pad"):
        store.join("s", session, "1", session)
    for session in ("desk", "phone"):
        store.leave("s", session)
        store.join("s", session, "1", session)
    assert store.info("s").records == {"1": "pad"}
    store.leave("s", "pad")
    assert store.info("s").records == {"1": "desk"}


def test_the_infos_of_ids_are_separate_also_if_one_id_begins_with_the_other(store: PresenceStore) -> None:
    for id_ in ("1", "1 ", '1"', '1" 2', "1!"):
        store.join("s", f"a{id_}", id_, f"{id_} first")
        store.join("s", f"b{id_}", id_, f"{id_} then")
    for id_ in ("1", "1 ", '1"', '1" 2', "1!"):
        store.leave("s", f"a{id_}")
    assert store.info("s").records == {id_: f"{id_} then" for id_ in ("1", "1 ", '1"', '1" 2', "1!")}


def test_an_expired_session_takes_its_info_along(store: PresenceStore, clock: Clock) -> None:
    store.join("s", "impostor", "1", "Mallory")
    clock.advance(TTL / 2)
    store.expire()
    store.join("s", "phone", "1", "Ann")
    clock.advance(TTL / 2)
    assert store.expire() == []
    assert store.info("s").records == {"1": "Ann"}
