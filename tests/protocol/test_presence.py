"""Tests of `ToldMembers`, which records the members that clients know, and of `compare`, which finds missing events."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.protocol.presence import Difference, ToldMembers, compare

IDS = st.sampled_from("abcdef")
PRESENT = st.dictionaries(IDS, st.integers())


def apply_difference(members: set[str], difference: Difference) -> set[str]:
    """Return the member list of a client after it has received the events of a difference."""
    return (members - set(difference.leaves)) | set(difference.joins)


class TestCompare:
    @given(told=st.dictionaries(IDS, st.booleans()), present=PRESENT, rng=st.randoms(use_true_random=False))
    def test_corrects_every_list_that_a_client_may_have(
        self, told: dict[str, bool], present: dict[str, int], rng: random.Random
    ) -> None:
        members = {id_ for id_, all_have_it in told.items() if all_have_it or rng.random() < 0.5}
        difference = compare(told, present)
        assert apply_difference(members, difference) == set(present)
        assert all(present[id_] == info for id_, info in difference.joins.items())

    @given(present=PRESENT)
    def test_finds_nothing_to_send_where_all_clients_have_all_members(self, present: dict[str, int]) -> None:
        assert compare(dict.fromkeys(present, True), present) == Difference({}, [])

    def test_sends_a_join_for_each_id_that_a_client_may_lack(self) -> None:
        assert compare({"ann": True, "bob": False}, {"ann": 1, "bob": 2, "eve": 3}) == Difference(
            {"bob": 2, "eve": 3}, []
        )

    def test_sends_a_leave_for_each_id_that_is_not_present(self) -> None:
        assert compare({"ann": True, "bob": False}, {}) == Difference({}, ["ann", "bob"])


class TestToldMembers:
    def test_all_clients_have_what_the_only_client_was_sent(self) -> None:
        told = ToldMembers()
        told.snapshot({"ann"})
        told.join("bob")
        assert told.ids == {"ann": True, "bob": True}

    def test_only_some_clients_have_what_another_snapshot_lacks(self) -> None:
        told = ToldMembers()
        told.snapshot({"ann", "bob"})
        told.snapshot({"bob", "eve"})
        assert told.ids == {"ann": False, "bob": True, "eve": False}

    def test_an_event_tells_all_clients(self) -> None:
        told = ToldMembers()
        told.snapshot({"ann", "bob"})
        told.snapshot(set())
        told.join("ann")
        told.leave("bob")
        told.leave("nobody")
        assert told.ids == {"ann": True}

    @given(
        st.lists(
            st.tuples(st.just("event"), IDS) | st.tuples(st.just("missed event"), IDS) | st.just(("new client", "")),
            max_size=30,
        )
    )
    def test_every_client_has_what_it_was_told_and_a_comparison_corrects_every_list(
        self, steps: list[tuple[str, str]]
    ) -> None:
        told = ToldMembers()
        present: set[str] = set()
        clients: list[set[str]] = []
        for step, id_ in steps:
            if step == "new client":
                told.snapshot(present)
                clients.append(set(present))
                continue
            present ^= {id_}
            if step == "event":
                (told.join if id_ in present else told.leave)(id_)
                for client in clients:
                    (client.add if id_ in present else client.discard)(id_)
        for client in clients:
            assert {id_ for id_, all_have_it in told.ids.items() if all_have_it} <= client <= told.ids.keys()
        difference = compare(told.ids, dict.fromkeys(present))
        assert all(apply_difference(client, difference) == present for client in clients)
