"""A property test that compares presence stores with a simple model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db import connections
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reliable_cable import models
from reliable_cable.concurrency.threads import submit_store
from reliable_cable.conf import CableSettings
from reliable_cable.stores.presence.base import Member, PresenceEvent, PresenceStore
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.presence.redis import RedisPresenceStore
from tests.support.client import unique
from tests.support.examples import examples

from .conftest import PRESENCE_STORES, Clock, finish_store_threads
from .presence import ThreadedPresenceStore

TTL, GRACE, KEPT = 10.0, 2.0, 20.0


class Model:
    """A simple model of one stream: sessions with ids and times of expiry. An id is present while it has a session.

    The info of an id is the info of its earliest session.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sessions: dict[str, tuple[str, float]] = {}
        self.infos: dict[str, dict[str, Any]] = {}  # id -> session -> info, in the order of joins
        self.left: dict[str, float] = {}
        #: The time of the last call of `expire`. If there were no sessions after it, the time of the next join, or None
        #: until then.
        self.swept: float | None = None
        #: The time until which `expire` removes nothing.
        self.grace = 0.0

    def join(
        self, session: str, id_: str, info: Any, joined: bool, replaces: str, announced: bool
    ) -> list[PresenceEvent]:
        # A store may remember a leave for longer than it has to, so `announced` tells whether the store announced this
        # join.
        if session not in self.sessions and self.sessions.get(replaces, ("", 0))[0] == id_:
            self.sessions[session] = self.sessions.pop(replaces)
            infos = self.infos[id_].items()
            self.infos[id_] = {session if other == replaces else other: info for other, info in infos}
        events = self.leave(session) if self.sessions.get(session, (id_,))[0] != id_ else []
        if id_ not in self.infos:
            left_at = self.left.pop(id_, None)
            remembered = left_at is not None and (announced or left_at >= self.clock() - KEPT - 60)
            if remembered or not joined:
                events.append(PresenceEvent("s", "join", id_, info))
        self.infos.setdefault(id_, {})[session] = info
        self.sessions[session] = (id_, self.clock() + TTL)
        if self.swept is None:
            self.swept = self.clock()
        return events

    def leave(self, session: str) -> list[PresenceEvent]:
        if session not in self.sessions:
            return []
        id_, _ = self.sessions.pop(session)
        info = self.infos[id_].pop(session)
        if self.infos[id_]:
            return []
        del self.infos[id_]
        self.left[id_] = self.clock()
        return [PresenceEvent("s", "leave", id_, info)]

    def records(self) -> list[tuple[str, Any]]:
        return [(id_, next(iter(infos.values()))) for id_, infos in self.infos.items()]

    def refresh(self, sessions: list[str]) -> list[tuple[str, str]]:
        for session in sessions:
            if session in self.sessions:
                self.sessions[session] = (self.sessions[session][0], self.clock() + TTL)
        return [("s", session) for session in sessions if session not in self.sessions]

    def shorten(self, session: str) -> None:
        if session in self.sessions:
            id_, deadline = self.sessions[session]
            self.sessions[session] = (id_, min(deadline, self.clock() + GRACE))

    def overdue(self) -> list[str]:
        return [session for session, (_, deadline) in self.sessions.items() if deadline <= self.clock()]

    def expire(self) -> list[PresenceEvent]:
        now = self.clock()
        if self.sessions and self.swept is not None and now - self.swept > TTL / 2:
            self.grace = now + TTL
        events = [event for session in self.overdue() for event in self.leave(session)] if now >= self.grace else []
        self.swept = now if self.sessions else None
        return events


SESSIONS = st.sampled_from(["phone", "desk", "pad", "car"])
STEPS = st.one_of(
    st.tuples(
        st.just("join"),
        SESSIONS,
        st.sampled_from("123"),
        st.sampled_from(["Ann", {"x": 1}]),
        st.booleans(),
        st.one_of(st.just(""), SESSIONS),
    ),
    st.tuples(st.just("leave"), SESSIONS),
    st.tuples(st.just("shorten"), SESSIONS),
    st.tuples(st.just("refresh"), st.lists(SESSIONS, unique=True)),
    st.tuples(st.just("advance"), st.sampled_from([1, 3, 7, 30])),
    st.tuples(st.just("expire")),
)


#: The join of a session that has joined before, by a server that expects the store to have the session already.
REJOIN = ("join", "phone", "1", "Ann", True, "")


def empty_tables(alias: str) -> None:
    for model in (models.PresenceStream, models.PresenceSession, models.PresenceEntry, models.PresenceSweep):
        model._default_manager.using(alias).all()._raw_delete(alias)


@pytest.mark.parametrize("alias", PRESENCE_STORES)
@example(steps=[("join", "phone", "1", "Ann", False, ""), ("leave", "phone"), *[("advance", 30)] * 20, REJOIN])
@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=40))
def test_a_store_does_what_the_model_does(alias: str, redis_settings: dict[str, Any], steps: list[Any]) -> None:
    clock = Clock()
    options = {**redis_settings, "key_prefix": unique("cable-test-")}
    make: Callable[..., PresenceStore] = MemoryPresenceStore if alias == "memory" else RedisPresenceStore
    if alias in connections.settings:
        make, options["database"] = ThreadedPresenceStore, alias
        submit_store(partial(empty_tables, alias)).result()
    store = make(CableSettings(presence_ttl=TTL, presence_grace=GRACE, sessions_ttl=KEPT, **options), clock=clock)
    model = Model(clock)
    for name, *args in steps:
        if name == "join":
            session, id_, info, joined, replaces = args
            events = store.join_all([Member("s", session, id_, info, joined, replaces)])
            announced = any(event.type == "join" for event in events)
            assert events == model.join(session, id_, info, joined, replaces, announced)
        elif name == "leave":
            assert store.leave("s", args[0]) == model.leave(args[0])
        elif name == "shorten":
            store.shorten("s", args[0])
            model.shorten(args[0])
        elif name == "refresh":
            assert store.refresh({"s": args[0]}).unknown == model.refresh(args[0])
        elif name == "advance":
            clock.advance(args[0])
        else:
            # Only the ids are compared. If several sessions expire at the same time, their order is not defined, and
            # thus the info of a leave event is not defined, either.
            assert {event.id for event in store.expire()} == {event.id for event in model.expire()}
        assert list((store.info("s").records or {}).items()) == model.records()
        alive = {id_ for session, (id_, _) in model.sessions.items() if session not in model.overdue()}
        assert set(store.info("s", overdue=False).records or {}) == alive
        assert set(store.left_within("s", 5)) == {id_ for id_, at in model.left.items() if at >= clock() - 5}
    if isinstance(store, RedisPresenceStore):
        store.close()
    elif alias in connections.settings:
        finish_store_threads()
