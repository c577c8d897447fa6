"""Pure functions that check the presence events and the member lists that were recorded in a storm.

At the end, the member list of each client must be right. During the storm, each join and leave must be announced once,
so joins and leaves of an id alternate. An announcement may be missing if the process that had to make it was killed, or
if Redis lost its data. A process that may have missed announcements may repeat them to its clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .verdict import Finding

WRONG_LIST = "wrong member list"
TWICE = "presence event twice"
PRESENCE_KINDS = (WRONG_LIST, TWICE)


@dataclass(frozen=True, slots=True)
class Change:
    """A join or a leave, as a client or a server recorded it.

    Args:
        type: "join" or "leave".
        id: the id of the member.
        at: the time, in seconds.
        connection: the number of the client's connection. A restore may repeat events of the former connection.
    """

    type: Literal["join", "leave"]
    id: str
    at: float
    connection: int = 0


def reorder(changes: Iterable[Change], *, within: float) -> list[Change]:
    """Swap signals that are close to each other, so that joins and leaves of an id alternate.

    If two calls change one id at the same time, their signals may be sent in any order.

    Args:
        changes: the signals in the order in which they were recorded.
        within: the maximum time between two swapped signals, in seconds.
    """
    of_id: dict[str, list[Change]] = {}
    for change in changes:
        of_id.setdefault(change.id, []).append(change)
    for known in of_id.values():
        for index in range(2, len(known)):
            one, two, three = known[index - 2 : index + 1]
            # After a swap, `following` comes after `two`. If both had the same type, the swap would only move the
            # repetition.
            following = known[index + 1].type if index + 1 < len(known) else three.type
            if one.type == two.type != three.type == following and three.at - two.at <= within:
                known[index - 1 : index + 1] = [three, two]
    return sorted((change for known in of_id.values() for change in known), key=lambda change: change.id)


def judge_changes(
    where: str, changes: Iterable[Change], excuses: Sequence[tuple[float, float]], *, reach: float
) -> list[Finding]:
    """Find joins and leaves of an id that were announced twice in a row.

    Args:
        where: the client or process that recorded the changes.
        changes: the changes in the order in which they were recorded.
        excuses: the beginning and the end of each fault that may have lost or repeated an announcement.
        reach: how long, in seconds, after such a fault its effect may appear.
    """
    findings: list[Finding] = []
    last: dict[str, Change] = {}
    for change in changes:
        before = last.get(change.id)
        last[change.id] = change
        if before is None or before.type != change.type or before.connection != change.connection:
            continue
        if not any(begun <= change.at and before.at - reach <= ended for begun, ended in excuses):
            what = f"{change.type} of {change.id} twice, {change.at - before.at:.2f} s apart"
            findings.append(Finding(TWICE, where, what))
    return findings


def judge_lists(
    expected: Mapping[str, Any], lists: Mapping[str, Mapping[str, Any] | None], service: Mapping[str, Any]
) -> list[Finding]:
    """Compare all member lists at the end of the storm with the expected one.

    Args:
        expected: the info of each id that has joined and not left.
        lists: the member list of each client, by the client's name; None if the client has no list.
        service: the member list of the servers.
    """
    findings = []
    for where, members in [("the servers", service), *sorted(lists.items())]:
        if members is None:
            findings.append(Finding(WRONG_LIST, where, "it has no member list"))
        elif dict(members) != dict(expected):
            missing, surplus = sorted(set(expected) - set(members)), sorted(set(members) - set(expected))
            other = sorted(id_ for id_ in set(expected) & set(members) if expected[id_] != members[id_])
            what = f"missing: {missing}; surplus: {surplus}; with another info: {other}"
            findings.append(Finding(WRONG_LIST, where, what, len(missing) + len(surplus) + len(other)))
    return findings


def judge_last(where: str, expected: Iterable[str], changes: Iterable[Change]) -> list[Finding]:
    """Find ids whose last signal does not fit the members that are expected at the end of the storm."""
    present: dict[str, bool] = {}
    for change in changes:
        present[change.id] = change.type == "join"
    there = {id_ for id_, is_there in present.items() if is_there}
    wrong = sorted(there.symmetric_difference(expected))
    return [Finding(WRONG_LIST, where, f"the last signals of {wrong} are wrong", len(wrong))] if wrong else []
