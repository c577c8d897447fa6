"""A property test that compares stream stores with a simple model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliable_cable.stores.streams.base import Message, StreamStore
from tests.stores.conftest import DURABLE, MEMORY, MODEL_STORES, REDIS_STORES, Clock, MakeStore
from tests.support.examples import examples

SIZE, TTL = 4, 10.0
NAMES = ("a", "b")

name = st.sampled_from(NAMES)
key = st.sampled_from(["", "", "k1", "k2"])
operation = st.one_of(
    st.tuples(st.just("append"), st.lists(st.tuples(name, key), min_size=1, max_size=6)),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 4.0, TTL])),
    st.tuples(st.just("forget"), name),
    st.tuples(st.just("prune"), st.integers(1, 5)),
)


@dataclass
class Entry:
    offset: int
    data: str
    key: str
    created: float


@dataclass
class Model:
    """A simple model of a stream: a list of all messages of its epoch.

    `kept` returns those of the last `SIZE` messages that have not expired.
    """

    epoch: int = 0
    #: The time of the newest message of the epochs before this one.
    forgotten: float = 0.0
    entries: list[Entry] = field(default_factory=list)

    def kept(self, now: float) -> list[Entry]:
        return [entry for entry in self.entries[-SIZE:] if entry.created > now - TTL]

    def append(self, items: list[tuple[str, str]], now: float) -> list[int]:
        """Append a batch, and return all offsets. An item with a known key is not stored, and gets the known offset."""
        keys = {entry.key: entry.offset for entry in self.kept(now) if entry.key}
        offsets = []
        for data, key in items:
            if not key or key not in keys:
                self.entries.append(Entry(len(self.entries) + 1, data, key, now))
                keys[key] = len(self.entries)
                offsets.append(len(self.entries))
            else:
                offsets.append(keys[key])
        return offsets

    def forget(self) -> Model:
        """Return the stream after its history was deleted. A stream that never had a message is not changed."""
        if not self.entries and not self.epoch:
            return self
        return Model(self.epoch + 1, self.entries[-1].created if self.entries else self.forgotten)

    def offset_since(self, since: float, now: float) -> int | None:
        if since <= self.forgotten:
            return None
        later = [entry for entry in self.entries if entry.created >= since]
        if not later:
            return len(self.entries)
        return later[0].offset - 1 if later[0] in self.kept(now) else None


def check(store: StreamStore, streams: dict[str, Model], epochs: dict[tuple[str, int], str], now: float) -> None:
    for stream, model in streams.items():
        page = store.read(stream, after=0, limit=100)
        kept = model.kept(now)
        assert [(entry.offset, entry.data) for entry in page.entries] == [(e.offset, e.data) for e in kept]
        assert page.tail == len(model.entries)
        assert page.low == (kept[0].offset if kept else page.tail + 1)
        assert bool(page.epoch) == bool(model.entries or model.epoch)
        if page.epoch:
            assert epochs.setdefault((stream, model.epoch), page.epoch) == page.epoch
        for since in (now - TTL - 1, now - 4, now, now + 1):
            assert store.offset_since(stream, since) == model.offset_since(since, now)
    assert len(set(epochs.values())) == len(epochs)


def run(make_store: MakeStore, clock: Clock, operations: list[tuple[str, Any]]) -> None:
    store = make_store(history_size=SIZE, history_ttl=TTL)
    epochs: dict[tuple[str, int], str] = {}
    for stream in NAMES:
        store.forget(stream)
    # Earlier examples have used the same streams, except in the memory store. So the streams may have epochs already.
    streams = {stream: Model(epoch=int(store.position(stream).epoch != "")) for stream in NAMES}
    clock.advance(TTL + 2)
    number = 0
    for what, argument in operations:
        if what == "append":
            items = [(stream, str(number + index), key) for index, (stream, key) in enumerate(argument)]
            number += len(items)
            positions = store.append_parts(
                [(stream, Message(data, idempotency_key=key)) for stream, data, key in items]
            )
            for stream, model in streams.items():
                wanted = model.append([(data, key) for where, data, key in items if where == stream], clock.now)
                got = [p.offset for p, item in zip(positions, items, strict=True) if item[0] == stream]
                assert got == wanted
        elif what == "wait":
            clock.advance(argument)
        elif what == "forget":
            store.forget(argument)
            streams[argument] = streams[argument].forget()
        else:
            store.prune(limit=argument)
        check(store, streams, epochs, clock.now)


HEALTH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.parametrize("alias", [MEMORY], indirect=True)
@settings(max_examples=examples(200), deadline=None, suppress_health_check=HEALTH)
@given(operations=st.lists(operation, max_size=20))
def test_the_memory_store_agrees_with_the_model(
    make_store: MakeStore, clock: Clock, operations: list[tuple[str, Any]]
) -> None:
    run(make_store, clock, operations)


@pytest.mark.parametrize("alias", REDIS_STORES, indirect=True)
@settings(max_examples=examples(100), deadline=None, suppress_health_check=HEALTH)
@given(operations=st.lists(operation, max_size=20))
def test_the_redis_store_agrees_with_the_model(
    make_store: MakeStore, clock: Clock, operations: list[tuple[str, Any]]
) -> None:
    run(make_store, clock, operations)


@pytest.mark.parametrize("alias", [*MODEL_STORES, DURABLE], indirect=True)
@settings(max_examples=examples(10), deadline=None, suppress_health_check=HEALTH)
@given(operations=st.lists(operation, min_size=3, max_size=10))
def test_the_model_store_agrees_with_the_model(
    make_store: MakeStore, clock: Clock, operations: list[tuple[str, Any]]
) -> None:
    run(make_store, clock, operations)
