"""Compares what clients were told about the members of a stream with the members that are present.

A client asks once for the members of a stream, and then follows join and leave events. If events may have been missed,
the comparison says which events to send. They may tell a client what it already knows (see Protocol: Presence).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from .constants import MAX_MEMBER_ID_LENGTH, MAX_MEMBER_INFO_SIZE


def member_fault(id_: str, info: str) -> str:
    """Return what is wrong with a member, as the end of a sentence; `""` if the member is valid.

    Args:
        id_: the id of the member.
        info: the info of the member as JSON text.
    """
    if len(id_) > MAX_MEMBER_ID_LENGTH:
        return f"the id has {len(id_)} characters; {MAX_MEMBER_ID_LENGTH} are allowed"
    if not id_.isprintable():
        return f"the id {id_!r} has a character that is not printable"
    size = len(info.encode(errors="replace"))
    if size > MAX_MEMBER_INFO_SIZE:
        return f"the info has {size} bytes as JSON; {MAX_MEMBER_INFO_SIZE} are allowed"
    return ""


class ToldMembers:
    """What a group of clients was told about the members of one stream.

    Every event is sent to all of these clients. But each of them asked for the members at another time, so their lists
    may differ after events were missed.
    """

    __slots__ = ("_has_snapshot", "ids")

    def __init__(self) -> None:
        #: For each id that any client may have in its list, whether all clients have it.
        self.ids: dict[str, bool] = {}
        self._has_snapshot = False

    def join(self, id_: str) -> None:
        """Record that all clients were sent a join event."""
        self.ids[id_] = True

    def leave(self, id_: str) -> None:
        """Record that all clients were sent a leave event."""
        self.ids.pop(id_, None)

    def snapshot(self, present: Set[str]) -> None:
        """Record that one client, which had no list before, was sent the ids of all members."""
        first, self._has_snapshot = not self._has_snapshot, True
        # Ids that are both recorded and present keep their value. If this client is the first one that got a list, no
        # other client lacks the new ids.
        for id_ in self.ids.keys() ^ present:
            self.ids[id_] = first and id_ in present


@dataclass(frozen=True, slots=True)
class Difference:
    """The events that correct the lists of clients.

    Args:
        joins: the info of each id that some client may lack.
        leaves: ids that some client may have, but that are not present.
    """

    joins: Mapping[str, Any]
    leaves: Sequence[str]


def compare(told: Mapping[str, bool], present: Mapping[str, Any]) -> Difference:
    """Return the events after which every client's list holds exactly the ids that are present.

    Args:
        told: for each id that any client may have in its list, whether all clients have it.
        present: the info of each id that is present.
    """
    return Difference(
        joins={id_: info for id_, info in present.items() if not told.get(id_)},
        leaves=[id_ for id_ in told if id_ not in present],
    )
