"""Tests of recovery: messages are sent in order and none is left out, or the loss is reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from reliable_cable.protocol.positions import HistoryRequest, StreamPosition
from reliable_cable.protocol.recovery import (
    Entry,
    StreamPage,
    Verdict,
    advance,
    judge,
    recoverable,
    requested_position,
)
from tests.support.examples import examples


def page(epoch: str, low: int, tail: int, *, after: int = 0, limit: int = 100) -> StreamPage:
    """Return a page from a store that has the messages from `low` to `tail`."""
    offsets = range(max(low, after + 1), tail + 1)[:limit]
    return StreamPage(epoch, tail, low, [Entry(offset, str(offset)) for offset in offsets])


class TestJudge:
    @pytest.mark.parametrize(
        ("position", "message", "verdict"),
        [
            (("a", 3), ("a", 4), Verdict.NEXT),
            (("a", 3), ("a", 3), Verdict.REPEAT),
            (("a", 3), ("a", 1), Verdict.REPEAT),
            (("a", 3), ("a", 5), Verdict.GAP),
            (("a", 3), ("b", 4), Verdict.GAP),
            (("a", 3), ("b", 1), Verdict.GAP),
            (("", 0), ("a", 1), Verdict.GAP),
            (("", 0), ("a", 2), Verdict.GAP),
        ],
    )
    def test_compares_a_live_message_with_the_position(
        self, position: tuple[str, int], message: tuple[str, int], verdict: Verdict
    ) -> None:
        assert judge(StreamPosition(*position), *message) is verdict


class TestRecoverable:
    def test_the_tail_is_recoverable_even_if_all_messages_expired(self) -> None:
        assert recoverable(StreamPosition("a", 7), page("a", 8, 7))

    def test_the_position_before_the_oldest_entry_is_recoverable(self) -> None:
        assert recoverable(StreamPosition("a", 4), page("a", 5, 9))
        assert not recoverable(StreamPosition("a", 3), page("a", 5, 9))

    def test_a_position_after_the_tail_is_not_recoverable(self) -> None:
        assert not recoverable(StreamPosition("a", 10), page("a", 5, 9))

    def test_a_position_of_another_epoch_is_not_recoverable(self) -> None:
        assert not recoverable(StreamPosition("b", 9), page("a", 5, 9))

    def test_no_position_of_a_forgotten_stream_is_recoverable(self) -> None:
        assert not recoverable(StreamPosition("a", 9), page("", 1, 0))
        assert recoverable(StreamPosition("", 0), page("", 1, 0))


class TestAdvance:
    def test_skips_earlier_entries_and_stops_at_upto(self) -> None:
        step = advance(StreamPosition("a", 2), page("a", 1, 9), upto=5)
        assert [entry.offset for entry in step.entries] == [3, 4, 5]
        assert step.position == StreamPosition("a", 5)
        assert not step.lost

    def test_a_trimmed_page_is_a_loss_and_continues_with_its_oldest_entry(self) -> None:
        step = advance(StreamPosition("a", 2), page("a", 6, 9))
        assert step.lost
        assert [entry.offset for entry in step.entries] == [6, 7, 8, 9]

    def test_another_epoch_is_a_loss_and_starts_with_its_oldest_entry(self) -> None:
        step = advance(StreamPosition("a", 5), page("b", 1, 2))
        assert step.lost
        assert step.position == StreamPosition("b", 2)

    def test_a_stream_that_is_gone_is_a_loss_unless_it_did_not_exist_before(self) -> None:
        gone = StreamPage("", 0, 1)
        assert advance(StreamPosition("a", 3), gone).lost
        assert advance(StreamPosition("a", 0), gone).lost, "the epoch had a first message"
        assert not advance(StreamPosition("", 0), gone).lost

    def test_stops_before_a_hole_within_a_page(self) -> None:
        entries = [Entry(3, "3"), Entry(5, "5")]
        step = advance(StreamPosition("a", 2), StreamPage("a", 5, 3, entries))
        assert [entry.offset for entry in step.entries] == [3]
        assert not step.lost

    def test_a_hole_before_the_first_entry_is_a_loss_and_continues_with_that_entry(self) -> None:
        entries = [Entry(3, "3"), Entry(5, "5")]
        step = advance(StreamPosition("a", 3), StreamPage("a", 5, 3, entries))
        assert step.lost
        assert [entry.offset for entry in step.entries] == [5]

    @given(
        st.integers(0, 30),
        st.integers(1, 30),
        st.integers(0, 30),
        st.one_of(st.none(), st.integers(0, 30)),
        st.sampled_from("ab"),
    )
    def test_the_entries_to_send_are_contiguous(
        self, offset: int, low: int, tail: int, upto: int | None, epoch: str
    ) -> None:
        low = min(low, tail + 1)
        position = StreamPosition("a", offset)
        step = advance(position, page(epoch, low, tail, after=offset), upto=upto)
        offsets = [entry.offset for entry in step.entries]
        assert all(right == left + 1 for left, right in pairwise(offsets))
        if offsets:
            assert step.position == StreamPosition(epoch, offsets[-1])
        if offsets and not step.lost:
            assert offsets[0] == offset + 1
        if not step.lost and position != step.position:
            assert step.position.offset > offset


class TestRequestedPosition:
    def test_the_preferred_stream_id_is_used(self) -> None:
        request = HistoryRequest(None, {"s": StreamPosition("a", 9), "s#1": StreamPosition("a", 4)})
        assert requested_position(request, ["s#1", "s"]) == StreamPosition("a", 4)
        assert requested_position(request, ["s#2", "s"]) == StreamPosition("a", 9)
        assert requested_position(request, ["other"]) is None


@dataclass
class FakeStream:
    """The state of a stream in the store."""

    epoch: str = "e0"
    epochs: int = 0
    low: int = 1
    tail: int = 0
    announced: list[tuple[str, int]] = field(default_factory=list)


class SubscriberMachine(RuleBasedStateMachine):
    """A subscriber, a store, and live messages that arrive late, twice, in any order or never."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = FakeStream()
        self.position = StreamPosition("", 0)
        self.pages: list[StreamPage] = []
        #: The messages that the subscriber received, as (epoch, offset), and None for each notice of a loss.
        self.log: list[tuple[str, int] | None] = []

    @rule(count=st.integers(1, 4))
    def broadcast(self, count: int) -> None:
        for _ in range(count):
            self.stream.tail += 1
            self.stream.announced.append((self.stream.epoch, self.stream.tail))

    @rule(count=st.integers(1, 5))
    def trim(self, count: int) -> None:
        self.stream.low = min(self.stream.low + count, self.stream.tail + 1)

    @rule()
    def new_epoch(self) -> None:
        self.stream.epochs += 1
        self.stream.epoch, self.stream.low, self.stream.tail = f"e{self.stream.epochs}", 1, 0

    @precondition(lambda self: self.stream.announced)
    @rule(data=st.data(), keep=st.booleans())
    def live_message(self, data: st.DataObject, keep: bool) -> None:
        """Deliver any of the announced messages, perhaps late or for the second time."""
        index = data.draw(st.integers(0, len(self.stream.announced) - 1))
        epoch, offset = self.stream.announced[index]
        if not keep:
            del self.stream.announced[index]
        if judge(self.position, epoch, offset) is Verdict.NEXT:
            self.log.append((epoch, offset))
            self.position = StreamPosition(epoch, offset)

    @rule(limit=st.integers(1, 5))
    def read(self, limit: int) -> None:
        """Read a page from the store and apply it."""
        stream = self.stream
        self.apply(page(stream.epoch, stream.low, stream.tail, after=self.position.offset, limit=limit))

    def apply(self, page_read: StreamPage) -> None:
        step = advance(self.position, page_read)
        if step.lost:
            self.log.append(None)
        self.log += [(page_read.epoch, entry.offset) for entry in step.entries]
        self.position = step.position

    @invariant()
    def has_no_gap_without_a_report(self) -> None:
        for left, right in pairwise(self.log):
            if left is not None and right is not None:
                assert right == (left[0], left[1] + 1), self.log

    def teardown(self) -> None:
        """Check that reading to the end of the stream delivers all messages that are stored."""
        for _ in range(self.stream.tail + 3):
            self.read(5)
        assert self.position == StreamPosition(self.stream.epoch, self.stream.tail)
        kept = [(self.stream.epoch, offset) for offset in range(self.stream.low, self.stream.tail + 1)]
        got = [item for item in self.log if item is not None]
        assert got[len(got) - len(kept) :] == kept


SubscriberMachine.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=30, deadline=None)
TestSubscriber = SubscriberMachine.TestCase
