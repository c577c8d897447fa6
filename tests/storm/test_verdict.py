"""The verdict of a storm finds each kind of broken promise in logs, and finds nothing in correct logs."""

from __future__ import annotations

from collections.abc import Iterable

from tests.storm.truth import Connected, Delivery, Event, Loss, Result, Sent, Signal, Truth
from tests.storm.verdict import (
    DISORDERED,
    INCONSISTENT,
    LOST,
    NEEDLESS,
    NUMBERED_TWICE,
    REPEATED,
    UNSIGNALLED,
    UNTOLD,
    Finding,
    judge_log,
    judge_store,
)

#: The time at which data were lost, between the two epochs of these tests. The store notices the loss at once.
LOSSES = (Loss(50, 50),)


def sent(epoch: str, offsets: Iterable[int], *, start: float = 0.0) -> list[Sent]:
    """Return broadcasts that were stored in an epoch: one each second, and each took half a second."""
    return [Sent("s", f"{epoch}{n}", start + n, (epoch, n), ended=start + n + 0.5) for n in offsets]


def received(epoch: str, *offsets: int) -> list[Event]:
    """Return deliveries of an epoch."""
    return [Delivery(epoch, n, f"{epoch}{n}", 0.0) for n in offsets]


def kinds(findings: Iterable[Finding]) -> dict[str, int]:
    found: dict[str, int] = {}
    for finding in findings:
        found[finding.kind] = found.get(finding.kind, 0) + finding.count
    return found


def judge_one_epoch(*log: Event, durable: bool = True) -> dict[str, int]:
    return kinds(judge_log(Truth("s", sent("a", range(1, 6)), () if durable else LOSSES), "client", log))


#: Five messages in the epoch "a", and five in the epoch "b" after Redis had lost its data.
LOSSY = [*sent("a", range(1, 6)), *sent("b", range(1, 6), start=100)]


def judge_two_epochs(*log: Event) -> dict[str, int]:
    return kinds(judge_log(Truth("s", LOSSY, LOSSES), "client", log))


# -- one epoch --------------------------------------------------------------------------------------------------------


def test_the_complete_sequence_is_right() -> None:
    assert judge_one_epoch(*received("a", 1, 2, 3, 4, 5)) == {}
    assert judge_one_epoch(*received("a", 1, 2, 3, 4, 5), durable=False) == {}


def test_a_gap_is_a_loss() -> None:
    assert judge_one_epoch(*received("a", 1, 2, 5)) == {LOST: 2}


def test_a_gap_without_a_loss_of_data_is_a_loss_even_if_it_was_signalled() -> None:
    log: list[Event] = [*received("a", 1, 2), Signal(0), *received("a", 5)]
    assert judge_one_epoch(*log, durable=False) == {LOST: 2, NEEDLESS: 1}
    assert judge_one_epoch(*log, durable=True) == {LOST: 2, NEEDLESS: 1}


def test_a_missing_beginning_is_a_loss() -> None:
    assert judge_one_epoch(*received("a", 2, 3, 4, 5)) == {LOST: 1}


def test_a_missing_end_is_a_loss() -> None:
    assert judge_one_epoch(*received("a", 1, 2, 3)) == {LOST: 2}


def test_an_empty_log_is_a_loss() -> None:
    assert judge_one_epoch() == {LOST: 5}


def test_a_repeated_message_is_found() -> None:
    assert judge_one_epoch(*received("a", 1, 2, 2, 3, 4, 5)) == {REPEATED: 1}
    assert judge_one_epoch(*received("a", 1, 2, 3, 4, 5, 3)) == {REPEATED: 1}


def test_a_late_message_is_disorder_and_not_a_loss() -> None:
    assert judge_one_epoch(*received("a", 1, 3, 2, 4, 5)) == {DISORDERED: 1}


def test_a_signal_without_a_loss_is_needless() -> None:
    for durable in (False, True):
        assert judge_one_epoch(*received("a", 1, 2), Signal(0), *received("a", 3, 4, 5), durable=durable) == {
            NEEDLESS: 1
        }
        assert judge_one_epoch(*received("a", 1, 2, 3, 4, 5), Signal(0), durable=durable) == {NEEDLESS: 1}
        assert judge_one_epoch(Signal(0), *received("a", 1, 2, 3, 4, 5), durable=durable) == {NEEDLESS: 1}


# -- two epochs -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_signalled_between_the_epochs_is_right() -> None:
    assert judge_two_epochs(*received("a", 1, 2, 3, 4, 5), Signal(50), *received("b", 1, 2, 3, 4, 5)) == {}


def test_the_end_of_the_lost_epoch_may_be_missing() -> None:
    assert judge_two_epochs(*received("a", 1, 2), Signal(50), Signal(51), *received("b", 1, 2, 3, 4, 5)) == {}


def test_a_loss_without_a_signal_is_found() -> None:
    assert judge_two_epochs(*received("a", 1, 2, 3, 4, 5), *received("b", 1, 2, 3, 4, 5)) == {UNSIGNALLED: 1}


def test_a_lost_beginning_without_a_signal_is_found() -> None:
    assert judge_two_epochs(*received("b", 1, 2, 3, 4, 5)) == {UNSIGNALLED: 1}
    assert judge_two_epochs(Signal(50), *received("b", 1, 2, 3, 4, 5)) == {}


def test_a_signal_at_the_wrong_place_is_found() -> None:
    late = judge_two_epochs(*received("a", 1, 2, 3, 4, 5), *received("b", 1), Signal(150), *received("b", 2, 3, 4, 5))
    assert late == {UNSIGNALLED: 1, NEEDLESS: 1}
    early = judge_two_epochs(*received("a", 1, 2), Signal(50), *received("a", 3, 4, 5), *received("b", 1, 2, 3, 4, 5))
    assert early == {UNSIGNALLED: 1, NEEDLESS: 1}


def test_only_messages_that_were_broadcast_before_the_signal_may_be_missing() -> None:
    assert judge_two_epochs(*received("a", 1), Signal(102.5), *received("b", 3, 4, 5)) == {}
    assert judge_two_epochs(*received("a", 1), Signal(100.5), *received("b", 3, 4, 5)) == {LOST: 2}


def test_only_the_last_signal_before_the_new_epoch_counts() -> None:
    assert judge_two_epochs(*received("a", 1), Signal(50), Signal(102.5), *received("b", 3, 4, 5)) == {}


def test_errors_within_the_new_epoch_are_found() -> None:
    assert judge_two_epochs(*received("a", 1), Signal(50), *received("b", 1, 3, 4, 5)) == {LOST: 1}
    assert judge_two_epochs(*received("a", 1), Signal(50), *received("b", 1, 2, 2, 4, 3)) == {
        REPEATED: 1,
        DISORDERED: 1,
        LOST: 1,
    }


def test_a_client_that_stays_in_the_lost_epoch_has_lost_the_new_one() -> None:
    assert judge_two_epochs(*received("a", 1, 2, 3, 4, 5), Signal(50)) == {LOST: 5}


def test_an_epoch_that_returns_is_disorder() -> None:
    assert judge_two_epochs(
        *received("a", 1, 2), Signal(50), *received("b", 1, 2), *received("a", 3), *received("b", 3, 4, 5)
    ) == {DISORDERED: 1 + 3}


def test_a_second_epoch_of_a_durable_stream_is_a_loss_even_if_it_was_signalled() -> None:
    log: list[Event] = [*received("a", 1, 2, 3, 4, 5), Signal(50), *received("b", 1, 2, 3, 4, 5)]
    assert LOST in kinds(judge_log(Truth("s", LOSSY), "client", log))


# -- the store --------------------------------------------------------------------------------------------------------


def judge_one_store(broadcasts: list[Sent], *log: Event, durable: bool = False) -> dict[str, int]:
    return kinds(judge_store(Truth("s", broadcasts, () if durable else LOSSES), {"client": log}))


def test_a_store_with_each_message_once_is_right() -> None:
    assert judge_one_store(LOSSY, *received("a", 1, 2), *received("b", 1)) == {}


def test_an_offset_that_was_used_twice_is_found() -> None:
    assert judge_one_store(LOSSY, Delivery("b", 2, "a1", 0)) == {NUMBERED_TWICE: 1, REPEATED: 1}


def test_a_message_that_is_stored_twice_is_found() -> None:
    twice = [*sent("a", range(1, 3)), Sent("s", "a3", 9, ("a", 3), Result.UNKNOWN), Sent("s", "x", 10, ("a", 5))]
    assert judge_one_store(twice, Delivery("a", 4, "a3", 0)) == {REPEATED: 1}


def test_a_message_that_was_broadcast_during_a_loss_may_also_be_in_the_next_epoch() -> None:
    broadcasts = [*sent("a", range(1, 4)), *sent("b", [2], start=100)]
    during = Sent("s", "x", 4, ("b", 1), Result.STORED, ended=100)
    assert judge_one_store([*broadcasts, during], Delivery("a", 4, "x", 0)) == {}
    assert judge_one_store([*broadcasts, during], Delivery("a", 4, "x", 0), durable=True) == {REPEATED: 1, NEEDLESS: 1}
    assert judge_one_store([*broadcasts, during], *[Delivery("a", n, "x", 0) for n in (4, 5)]) == {REPEATED: 1}


def test_a_message_that_was_broadcast_after_the_loss_is_in_the_new_epoch_only() -> None:
    broadcasts = [*sent("a", range(1, 4)), *sent("b", [1], start=100), Sent("s", "x", 105, ("b", 2), ended=106)]
    assert judge_one_store(broadcasts, Delivery("a", 4, "x", 0)) == {REPEATED: 1}


def test_a_message_with_an_unknown_result_that_was_not_repeated_is_stored_at_most_once() -> None:
    unknown = [*sent("a", range(1, 4)), Sent("s", "x", 4, None, Result.UNKNOWN), *sent("a", [5, 6], start=1)]
    end = [*unknown, Sent("s", "y", 9, ("a", 7))]
    assert judge_one_store(unknown[:4], *received("a", 1)) == {}
    assert judge_one_store(end, Delivery("a", 4, "x", 0)) == {}
    assert judge_one_store(
        [*end, Sent("s", "z", 10, ("a", 9))], Delivery("a", 4, "x", 0), Delivery("a", 8, "x", 0)
    ) == {REPEATED: 1}
    assert judge_one_store([*end, *sent("b", [1], start=100)], Delivery("a", 4, "x", 0), Delivery("a", 8, "x", 0)) == {
        REPEATED: 1
    }


def test_a_refused_broadcast_that_arrives_is_found() -> None:
    refused = [*sent("a", range(1, 4)), Sent("s", "no", 3.5, None, Result.REFUSED), Sent("s", "x", 5, ("a", 5))]
    assert judge_one_store(refused, Delivery("a", 4, "no", 0)) == {INCONSISTENT: 1}


def test_a_committed_broadcast_is_stored_once_at_any_position() -> None:
    committed = [*sent("a", range(1, 4)), Sent("s", "c", 3.5, None, Result.COMMITTED), Sent("s", "x", 5, ("a", 6))]
    assert judge_one_store(committed, Delivery("a", 4, "c", 0), Delivery("a", 5, "c", 0), durable=True) == {REPEATED: 1}
    committed[-1] = Sent("s", "x", 5, ("a", 5))
    assert judge_one_store(committed, Delivery("a", 4, "c", 0), durable=True) == {}
    committed[-1] = Sent("s", "x", 5, ("a", 4))
    assert judge_one_store(committed, durable=True) == {UNTOLD: 1}


def test_a_message_after_the_last_known_one_is_right() -> None:
    assert judge_one_epoch(*received("a", 1, 2, 3, 4, 5, 6)) == {}


def test_a_message_that_was_never_sent_is_found() -> None:
    strange = [*sent("a", range(1, 4)), Sent("s", "x", 5, ("a", 5))]
    assert judge_one_store(strange, Delivery("a", 4, "strange", 0)) == {INCONSISTENT: 1}


def test_an_offset_without_a_message_is_found() -> None:
    assert judge_one_store([*sent("a", range(1, 4)), *sent("a", [6])]) == {INCONSISTENT: 2}


# -- data that was lost -----------------------------------------------------------------------------------------------


def test_an_epoch_that_begins_although_no_data_was_lost_is_needless() -> None:
    assert kinds(judge_store(Truth("s", LOSSY), {})) == {NEEDLESS: 1}
    third = [*LOSSY, *sent("c", range(1, 3), start=200)]
    assert kinds(judge_store(Truth("s", third, LOSSES), {})) == {NEEDLESS: 1}
    assert kinds(judge_store(Truth("s", third, [*LOSSES, Loss(150, 150)]), {})) == {}


def test_a_later_loss_does_not_justify_an_epoch() -> None:
    assert kinds(judge_store(Truth("s", LOSSY, [Loss(150, 150)]), {})) == {NEEDLESS: 1}


def test_a_lost_tail_is_right_if_the_client_was_told_afterwards() -> None:
    assert judge_two_epochs(*received("a", 1, 2), Signal(5.5), *received("b", 1, 2, 3, 4, 5)) == {}


def test_a_lost_tail_is_found_if_the_client_was_told_before_it_was_broadcast() -> None:
    assert judge_two_epochs(*received("a", 1, 2), Signal(3.5), *received("b", 1, 2, 3, 4, 5)) == {UNTOLD: 2}


def test_an_epoch_that_a_client_missed_is_found_if_the_client_was_told_before_it() -> None:
    truth = Truth("s", [*LOSSY, *sent("c", range(1, 3), start=200)], [*LOSSES, Loss(150, 150)])
    told = [*received("a", 1, 2, 3, 4, 5), Signal(60), *received("c", 1, 2)]
    assert kinds(judge_log(truth, "client", told)) == {UNTOLD: 5}
    told.insert(6, Signal(160))
    assert kinds(judge_log(truth, "client", told)) == {}


def test_a_committed_broadcast_may_be_lost_if_all_clients_were_told_afterwards() -> None:
    truth = Truth("s", [*LOSSY, Sent("s", "c", 6, None, Result.COMMITTED, 7)], LOSSES)
    told = [Signal(60)]
    assert kinds(judge_store(truth, {"one": told, "two": told})) == {}
    assert kinds(judge_store(truth, {"one": told, "two": [Signal(5.5)]})) == {UNTOLD: 1}
    assert kinds(judge_store(truth, {"one": told, "two": []})) == {UNTOLD: 1}


def test_a_committed_broadcast_that_was_pending_during_a_loss_may_have_a_position_before_and_after_it() -> None:
    def twice(begun: float) -> dict[str, int]:
        one = Sent("s", "x", begun, None, Result.COMMITTED, begun + 0.5)
        return judge_one_store([*LOSSY, one], Delivery("a", 6, "x", 0), Delivery("b", 6, "x", 0))

    assert twice(49) == {}
    assert twice(40) == {REPEATED: 1}
    assert twice(51) == {REPEATED: 1}


# -- a store that does not notice that an older copy of it was restored -----------------------------------------------

#: At time 50, an older copy of the store was restored, with messages up to offset 3. A server noticed this before time
#: 55. In between, "x4" was stored at the former position of "a4".
UNNOTICED = [*sent("a", range(1, 6)), Sent("s", "x4", 51, ("a", 4), ended=51.5), *sent("b", range(1, 6), start=100)]


def test_a_position_may_be_used_twice_until_the_loss_is_noticed() -> None:
    assert kinds(judge_store(Truth("s", UNNOTICED, [Loss(50, 55)]), {})) == {}


def test_a_position_that_is_used_twice_later_is_found() -> None:
    assert kinds(judge_store(Truth("s", UNNOTICED, [Loss(50, 50.5)]), {})) == {NUMBERED_TWICE: 1}


def test_a_position_that_is_used_twice_is_found_if_the_store_notices_a_loss_at_once() -> None:
    assert kinds(judge_store(Truth("s", UNNOTICED, [Loss(51, 51)]), {})) == {NUMBERED_TWICE: 1}


def test_a_position_that_is_used_twice_is_found_if_the_epoch_continues() -> None:
    assert kinds(judge_store(Truth("s", UNNOTICED[:6], [Loss(50, 55)]), {})) == {NUMBERED_TWICE: 1}


def test_the_client_must_be_told_after_a_position_was_used_twice() -> None:
    truth = Truth("s", UNNOTICED, [Loss(50, 55)])
    for told, findings in ((50.5, {UNTOLD: 1}), (54.0, {})):
        log = [*received("a", 1, 2, 3, 4, 5), Signal(told), *received("b", 1, 2, 3, 4, 5)]
        assert kinds(judge_log(truth, "client", log)) == findings


def test_a_client_may_be_told_of_a_loss_that_the_store_has_not_noticed_yet() -> None:
    # The client was ahead of the older copy. The store has as many messages again before it notices the loss.
    truth = Truth("s", sent("a", range(1, 6)), [Loss(50, 55)])
    for told, findings in ((52, {}), (60, {NEEDLESS: 1})):
        log = [*received("a", 1, 2, 3), Connected(told), Signal(told), *received("a", 4, 5)]
        assert kinds(judge_log(truth, "client", log)) == findings


def test_an_offset_that_was_used_twice_counts_as_broadcast_when_it_was_first_used() -> None:
    again = Sent("s", "a2 again", 101, ("a", 2), ended=101.5)
    former, latter = sent("z", range(1, 4)), sent("a", range(1, 6), start=60)
    truth = Truth("s", [*former, *latter, again], [Loss(50, 55), Loss(100, 105)])
    log = [*received("z", 1, 2, 3), Signal(62.5), *received("a", 3, 4, 5)]
    assert kinds(judge_log(truth, "client", log)) == {}


# -- a small history --------------------------------------------------------------------------------------------------


#: The first two messages, delivered as soon as they were broadcast.
FIRST_TWO = [Delivery("a", n, f"a{n}", n + 0.5) for n in (1, 2)]


def judge_small_history(*log: Event) -> dict[str, int]:
    """Judge a log of a stream that has ten messages, and a history of three."""
    return kinds(judge_log(Truth("s", sent("a", range(1, 11)), history_size=3), "client", log))


def test_a_client_that_missed_more_than_the_history_holds_may_be_told() -> None:
    assert judge_small_history(*received("a", 1, 2), Connected(6), Signal(6.5), *received("a", 7, 8, 9, 10)) == {}


def test_a_connected_client_receives_complete_bursts() -> None:
    assert judge_small_history(Connected(0), *received("a", 1, 2), Signal(6.5), *received("a", 7, 8, 9, 10)) == {
        LOST: 4,
        NEEDLESS: 1,
    }
    assert judge_small_history(*received("a", 1, 2), Signal(6.2), Connected(6.5), *received("a", 7, 8, 9, 10)) == {
        LOST: 4,
        NEEDLESS: 1,
    }


def test_a_disconnected_client_must_be_told() -> None:
    assert judge_small_history(*received("a", 1, 2), Connected(6), *received("a", 7, 8, 9, 10)) == {LOST: 4}


def test_a_disconnected_client_receives_what_the_history_holds() -> None:
    assert judge_small_history(*FIRST_TWO, Connected(5), Signal(5.5), *received("a", 6, 7, 8, 9, 10)) == {
        LOST: 3,
        NEEDLESS: 1,
    }


def test_a_client_that_was_told_may_receive_the_missed_messages_nevertheless() -> None:
    after = received("a", 3, 4, 5, 6, 7, 8, 9, 10)
    assert judge_small_history(*FIRST_TWO, Connected(7), Signal(7.5), *after) == {}
    assert judge_small_history(*FIRST_TWO, Connected(3), Signal(3.5), *after) == {NEEDLESS: 1}
    assert judge_small_history(*FIRST_TWO, Signal(7.5), *after) == {NEEDLESS: 1}


def test_a_reconnected_client_receives_all_later_messages() -> None:
    assert judge_small_history(*received("a", 1, 2), Connected(5), Signal(5.5), *received("a", 7, 8, 9, 10)) == {
        LOST: 1
    }


def test_messages_that_all_clients_were_told_they_missed_may_be_missing_everywhere() -> None:
    broadcasts = [one for one in sent("a", range(1, 11)) if one.id not in ("a4", "a5")]
    truth = Truth("s", broadcasts, history_size=3)
    away = [*received("a", 1, 2), Connected(6), Signal(6.5), *received("a", 7, 8, 9, 10)]
    assert kinds(judge_store(truth, {"one": away, "two": away})) == {}
    assert kinds(judge_store(truth, {"one": away, "two": received("a", 1, 2, 3)})) == {INCONSISTENT: 2}
