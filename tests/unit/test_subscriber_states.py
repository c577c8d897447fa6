"""On random walks through the states of subscribers, the frames that they are sent agree with a model.

Two clients subscribe to two streams. Connections, replays and the hub are the real ones. The test controls the time,
the sockets, and the announcements of the store.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
)

from reliable_cable.connection.stream_ids import stream_alias
from reliable_cable.connection.subscription import Subscription
from reliable_cable.exceptions import StoreError
from reliable_cable.hub import fanout
from reliable_cable.stores.streams.base import Advanced
from tests.support.random_walk import run_random_walks
from tests.unit.wire import registered

from .delivery_client import Client
from .delivery_model import (
    IDENTIFIERS,
    PARAMS,
    STREAMS,
    Request,
    Room,
)
from .delivery_world import DeliveryWorld

clients = st.integers(0, 1)
streams = st.sampled_from(STREAMS)
identifiers = st.sampled_from(IDENTIFIERS)
#: How many iterations the event loop makes after a step.
iterations = st.sampled_from([0, 1, 2, 5, 20])


class Delivery(DeliveryWorld):
    """The rules: broadcasts, losses and outages of the store, commands, and broken connections."""

    # -- broadcasts ----------------------------------------------------------------------------------------------------

    @rule(
        stream=streams,
        count=st.integers(1, 6),
        exclude=st.sampled_from([None, None, None, 0, 1]),
        pad=st.sampled_from([0, 0, 300]),
        announced=st.sampled_from(["together", "one by one", "one by one", ""]),
        then=iterations,
    )
    def append(self, stream: str, count: int, exclude: int | None, pad: int, announced: str, then: int) -> None:
        sid = "" if exclude is None else self.clients[exclude].sid
        events = [self._append(stream, sid, pad) for _ in range(count)]
        self.announcements += events
        if announced == "together":
            self.loop.call(lambda: [self.store.deliver(event) for event in events])
        elif announced:
            for event in events:
                self._deliver(event)
        self.loop.iterate(then)

    @precondition(lambda self: self.announcements)
    @rule(data=st.data(), then=iterations)
    def announce_late_or_again(self, data: st.DataObject, then: int) -> None:
        newest = len(self.announcements) - 1
        self._deliver(self.announcements[newest - data.draw(st.integers(0, min(newest, 12)))])
        self.loop.iterate(then)

    @rule(stream=streams, then=iterations)
    def announce_an_advance(self, stream: str, then: int) -> None:
        self._deliver(Advanced(stream))
        self.loop.iterate(then)

    @rule(
        stream=streams, exclude=st.sampled_from([None, None, 0, 1]), pad=st.sampled_from([0, 0, 300]), then=iterations
    )
    def send_a_transient_message(self, stream: str, exclude: int | None, pad: int, then: int) -> None:
        sid = "" if exclude is None else self.clients[exclude].sid
        self._deliver(self._make_transient(stream, sid, pad))
        self.loop.iterate(then)

    # -- the store -----------------------------------------------------------------------------------------------------

    @rule(stream=streams, announced=st.booleans(), then=iterations)
    def forget(self, stream: str, announced: bool, then: int) -> None:
        self.store.forget(stream)
        self.world[stream].damaged = True
        self.world[stream].rewound = False
        if announced:
            self._deliver(Advanced(stream))
        self.loop.iterate(then)

    @rule(stream=streams, count=st.integers(1, 3), announced=st.booleans(), then=iterations)
    def lose_the_newest(self, stream: str, count: int, announced: bool, then: int) -> None:
        history = self.world[stream]
        lost = self.store.lose_newest(stream, count)
        if lost:
            history.damaged = history.rewound = True
            for message in [each for each in history.messages if not each.vanished][-lost:]:
                message.vanished = True
        if announced:
            self._deliver(Advanced(stream))
        self.loop.iterate(then)

    @rule(then=iterations)
    def break_or_mend_the_store(self, then: int) -> None:
        self.store.broken = not self.store.broken
        self.loop.iterate(then)

    # -- commands ------------------------------------------------------------------------------------------------------

    @rule(client=clients, name=identifiers, how=st.sampled_from(["plain", "honest", "since"]), then=iterations)
    def subscribe(self, client: int, name: str, how: str, then: int) -> None:
        one = self.clients[client]
        sub = one.subscribed[name]
        if not one.sid or one.commands is None:
            return
        again = (sub.state == "active" and not sub.confirmed) or (
            sub.state == "leaving" and sub.again is None and sub.refresh is None
        )
        if sub.state == "absent" or again:
            request = one.honest(name) if how == "honest" else self._since() if how == "since" else None
            one.subscribe(name, request)
        elif sub.state in ("pending", "active"):
            one.repeat(name)
        self._flush(one)
        self.loop.iterate(then)

    @rule(client=clients, name=identifiers, then=iterations)
    def unsubscribe(self, client: int, name: str, then: int) -> None:
        one = self.clients[client]
        if one.sid and one.commands is not None and one.subscribed[name].state in ("pending", "active"):
            one.unsubscribe(name)
            self._flush(one)
            self.loop.iterate(then)

    @rule(
        client=clients,
        name=identifiers,
        how=st.sampled_from(["honest", "honest", "old", "other epoch", "beyond", "since", "empty", "empty", "empty"]),
        back=st.integers(0, 5),
        repeat=st.sampled_from([1, 1, 2]),
        before=st.sampled_from([0, 0, 3]),
        then=iterations,
    )
    def request_history(self, client: int, name: str, how: str, back: int, repeat: int, before: int, then: int) -> None:
        one = self.clients[client]
        if one.commands is None or one.subscribed[name].state != "active":
            return
        for _ in range(repeat):
            one.request(name, self._make_request(one, name, how, back))
        # These messages are announced together with the request, so they are still queued when it is handled.
        self._flush(one, [self._append("a") for _ in range(before)])
        self.loop.iterate(then)

    def _make_request(self, client: Client, name: str, how: str, back: int) -> Request | None:
        if how == "honest" or client.subscribed[name].restored:
            return client.honest(name)
        if how == "since":
            return self._since()
        if how == "empty":
            return None
        positions: dict[str, tuple[str, int]] = {}
        outdated: list[str] = []
        for stream in PARAMS[name]:
            messages = self.world[stream].messages
            if not messages:
                continue
            last = messages[-1]
            epoch, offset = last.epoch, max(last.offset - back, 0)
            if how == "beyond":
                offset = last.offset + 1 + back
            elif how == "other epoch":
                ended = [each for each in messages if each.epoch != last.epoch]
                if not ended:
                    continue
                epoch, offset = ended[-1].epoch, max(ended[-1].offset - back, 0)
                outdated.append(stream)
            positions |= {stream: (epoch, offset), stream_alias(stream, name): (epoch, offset)}
        return Request(positions, None, honest=False, outdated=tuple(outdated))

    def _since(self) -> Request:
        return Request({}, self.store.now - 2, honest=False)

    @rule(client=clients, name=identifiers, what=st.sampled_from(["start", "stop"]), stream=streams, then=iterations)
    def start_or_stop_a_stream(self, client: int, name: str, what: str, stream: str, then: int) -> None:
        one = self.clients[client]
        sub = one.subscribed[name]
        if one.commands is None or sub.state != "active":
            return
        (sub.starting if what == "start" else sub.stopping)[stream] += 1
        one.send("message", name, data=json.dumps({"action": what, "stream": stream}))
        self._flush(one)
        self.loop.iterate(then)

    # -- sockets and time ----------------------------------------------------------------------------------------------

    @rule(client=clients)
    def begin_or_stop_to_read(self, client: int) -> None:
        self.clients[client].reads = not self.clients[client].reads

    @rule(client=clients, count=st.sampled_from([1, 2, 5]), then=iterations)
    def read(self, client: int, count: int, then: int) -> None:
        self._read(self.clients[client], count)
        self.loop.iterate(then)

    @rule(count=st.sampled_from([1, 3, 10, 50]))
    def let_the_loop_run(self, count: int) -> None:
        self.loop.iterate(count)

    @rule(seconds=st.sampled_from([0.01, 0.5, 0.6, 3.0, 11.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.run_for(seconds)

    @rule(client=clients, noticed=st.booleans(), away=st.sampled_from([0, 1, 5, 20]))
    def break_a_connection(self, client: int, noticed: bool, away: int) -> None:
        self._drop(self.clients[client], noticed=noticed)
        self.loop.iterate(away)

    @rule(
        client=clients,
        restored=st.sampled_from([True, True, True, False]),
        noticed=st.booleans(),
        prompt=st.sampled_from([True, True, False]),
        then=iterations,
    )
    def connect(self, client: int, restored: bool, noticed: bool, prompt: bool, then: int) -> None:
        one = self.clients[client]
        self._drop(one, noticed=noticed)
        one.prompt = prompt
        self._connect(one, one.sid if restored else "")
        self.loop.iterate(then)

    @precondition(lambda self: self.zombies)
    @rule()
    def notice_a_broken_connection(self) -> None:
        self._end(self.zombies.pop(0))


@pytest.fixture
def _instant(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("reliable_cable.stores.streams.memory.YOUNG_TIME", 0.0)
    monkeypatch.setattr("reliable_cable.hub.stream.MAX_QUEUED", 900)
    monkeypatch.setattr(fanout, "POLICY", replace(fanout.POLICY, budget=2, shortest_pause=math.inf))
    report_loss = Subscription.report_loss

    def report_loss_after_a_mark(subscription: Subscription) -> None:
        # Without this mark, the client could not tell a notice of a loss from the answer to its request.
        mark = {"type": "loss", "identifier": subscription.identifier}
        subscription.connection.outbox.push(json.dumps(mark))
        report_loss(subscription)

    monkeypatch.setattr(Subscription, "report_loss", report_loss_after_a_mark)
    with registered(Room=Room):
        yield


@pytest.mark.usefixtures("_instant")
@pytest.mark.parametrize("frames", [True, False], ids=["frames", "send"])
def test_each_client_receives_each_message_once_in_order_or_is_told_of_a_loss(
    frames: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Machine(Delivery):
        def teardown(self) -> None:
            try:
                super().teardown()
                check_log(caplog)
            finally:
                caplog.clear()

    Machine.frames = frames
    run_random_walks(Machine, walks=EXAMPLES, steps=STEPS)


EXAMPLES, STEPS = 100, 40


def check_log(caplog: pytest.LogCaptureFixture) -> None:
    """Check that no errors other than outages of the store were logged."""
    for record in caplog.records:
        if record.levelno >= logging.ERROR and record.exc_info and record.exc_info[1] is not None:
            assert isinstance(record.exc_info[1], StoreError), record.getMessage()


@pytest.mark.usefixtures("_instant")
def test_messages_that_are_queued_when_history_is_requested_are_sent() -> None:
    """A case that the random walk finds too rarely."""
    machine = Delivery()
    machine.begin(size=1000, start=20)
    machine.let_the_loop_run(50)
    machine.end_what_the_server_has_closed()
    for name in IDENTIFIERS:
        machine.request_history(client=1, name=name, how="empty", back=0, repeat=1, before=3, then=20)
        machine.end_what_the_server_has_closed()
    machine.teardown()


@pytest.mark.usefixtures("_instant")
def test_a_stream_that_is_forgotten_before_a_subscriber_is_live_is_reported_as_a_loss() -> None:
    """Another case that the random walk finds too rarely."""
    machine = Delivery()
    machine.begin(size=3, start=0)
    machine.end_what_the_server_has_closed()
    machine.let_the_loop_run(1)
    machine.end_what_the_server_has_closed()
    machine.append(stream="a", count=3, exclude=None, pad=0, announced="one by one", then=0)
    machine.end_what_the_server_has_closed()
    machine.forget(stream="a", announced=False, then=5)
    machine.end_what_the_server_has_closed()
    machine.let_the_loop_run(50)
    machine.end_what_the_server_has_closed()
    machine.teardown()


@pytest.mark.usefixtures("_instant")
def test_a_stream_that_an_unanswered_action_stopped_begins_afresh_after_a_restore() -> None:
    """Another case that the random walk finds too rarely."""
    both = IDENTIFIERS[1]
    machine = Delivery()
    machine.begin(size=3, start=50)
    machine.end_what_the_server_has_closed()
    machine.begin_or_stop_to_read(client=0)
    machine.start_or_stop_a_stream(client=0, name=both, what="stop", stream="b", then=20)
    machine.append(stream="b", count=1, exclude=None, pad=0, announced="together", then=0)
    machine.connect(client=0, restored=True, noticed=False, prompt=True, then=20)
    machine.begin_or_stop_to_read(client=0)
    machine.end_what_the_server_has_closed()
    machine.start_or_stop_a_stream(client=0, name=both, what="start", stream="b", then=20)
    machine.append(stream="b", count=1, exclude=None, pad=0, announced="together", then=20)
    machine.end_what_the_server_has_closed()
    machine.teardown()


@pytest.mark.usefixtures("_instant")
def test_a_request_by_time_skips_no_message_that_was_not_announced() -> None:
    """The client was subscribed when the messages were stored.

    So it must receive them, although they are older than the time in its request.
    """
    machine = Delivery()
    machine.begin(size=1000, start=50)
    machine.end_what_the_server_has_closed()
    machine.append(stream="a", count=1, exclude=None, pad=0, announced="together", then=50)
    machine.end_what_the_server_has_closed()
    machine.append(stream="a", count=5, exclude=None, pad=0, announced="", then=0)
    machine.request_history(client=0, name=IDENTIFIERS[0], how="since", back=0, repeat=1, before=0, then=50)
    machine.end_what_the_server_has_closed()
    machine.teardown()
