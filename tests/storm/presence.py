"""What the storm's logs say of presence, as pure functions.

At rest, what every client believes equals who is there. Before that, each change of membership is told once: joins and
leaves of an id alternate. Where a process that had to tell was killed, or Redis lost its data, one may be missing; and
where a process may have missed some, it tells its clients again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .verdict import Finding

BELIEF = "presence differs"
TWICE = "presence told twice"
PRESENCE_KINDS = (BELIEF, TWICE)


@dataclass(frozen=True, slots=True)
class Change:
    """A join or a leave, as somebody heard of it.

    Args:
        type: which.
        id: of the member.
        at: when, in seconds.
        hearing: of a client, the number of its connection, since a restore may repeat what was told before it.
    """

    type: Literal["join", "leave"]
    id: str
    at: float
    hearing: int = 0


def untangle(changes: Iterable[Change], *, within: float) -> list[Change]:
    """Return signals in an order in which joins and leaves of an id alternate, as far as small shifts bring that about.

    Two changes of one id that two calls brought about at the same time are signalled in any order.

    Args:
        changes: in the order in which they were noted.
        within: seconds that two changes may be apart to be exchanged.
    """
    of_id: dict[str, list[Change]] = {}
    for change in changes:
        known = of_id.setdefault(change.id, [])
        known.append(change)
        if len(known) > 2 and known[-3].type == known[-2].type != change.type and change.at - known[-2].at <= within:
            known[-2:] = [change, known[-2]]
    return sorted((change for known in of_id.values() for change in known), key=lambda change: change.id)


def judge_changes(
    where: str, changes: Iterable[Change], excuses: Sequence[tuple[float, float]], *, reach: float
) -> list[Finding]:
    """Find joins and leaves of one id that were announced twice in a row.

    Args:
        where: the client or process that heard them.
        changes: in the order in which they were heard.
        excuses: the times of faults, from and until, which may have lost the change between, or repeated it.
        reach: the most seconds from such a fault until its effect.
    """
    findings: list[Finding] = []
    last: dict[str, Change] = {}
    for change in changes:
        before = last.get(change.id)
        last[change.id] = change
        if before is None or before.type != change.type or before.hearing != change.hearing:
            continue
        if not any(begun <= change.at and before.at - reach <= ended for begun, ended in excuses):
            what = f"{change.type} of {change.id} twice, {change.at - before.at:.2f} s apart"
            findings.append(Finding(TWICE, where, what))
    return findings


def judge_beliefs(
    expected: Mapping[str, Any], beliefs: Mapping[str, Mapping[str, Any] | None], service: Mapping[str, Any]
) -> list[Finding]:
    """Compare what everybody believes, at rest, with who is there.

    Args:
        expected: the info of each id that has joined and not left.
        beliefs: what each client believes; None: it knows nothing.
        service: what the server side says.
    """
    findings = []
    for where, believed in [("the service", service), *sorted(beliefs.items())]:
        if believed is None:
            findings.append(Finding(BELIEF, where, "it knows nothing"))
        elif dict(believed) != dict(expected):
            missing, surplus = sorted(set(expected) - set(believed)), sorted(set(believed) - set(expected))
            other = sorted(id_ for id_ in set(expected) & set(believed) if expected[id_] != believed[id_])
            what = f"missing {missing}, not there any more {surplus}, with another info {other}"
            findings.append(Finding(BELIEF, where, what, len(missing) + len(surplus) + len(other)))
    return findings


def judge_last(where: str, expected: Iterable[str], changes: Iterable[Change]) -> list[Finding]:
    """Compare the last change of each id, as the signals told them, with who is there at rest."""
    present: dict[str, bool] = {}
    for change in changes:
        present[change.id] = change.type == "join"
    there = {id_ for id_, is_there in present.items() if is_there}
    wrong = sorted(there.symmetric_difference(expected))
    return [Finding(BELIEF, where, f"the last that was told of {wrong} is not what is", len(wrong))] if wrong else []
