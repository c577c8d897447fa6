"""Compares the members of a stream with the members that clients know of.

A client requests the members of a stream once, and then receives join and leave events. If events may have been missed,
this comparison finds the events that correct the clients' lists. Some of these events may be redundant for a client
(see Protocol: Presence).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from .constants import MAX_MEMBER_ID_LENGTH, MAX_MEMBER_INFO_SIZE


def member_fault(id_: str, info: str) -> str:
    """Return the fault of an invalid member, as the end of a sentence; `""` if the member is valid.

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
    """The ids of one stream's members, as they were sent to a group of clients.

    Every event that this process receives is sent to all these clients. But the clients requested the members at
    different times. So their lists may differ if this process has missed events.
    """

    __slots__ = ("_has_snapshot", "ids")

    def __init__(self) -> None:
        #: The ids that some client may have in its list. A value is True if all clients have the id.
        self.ids: dict[str, bool] = {}
        self._has_snapshot = False

    def join(self, id_: str) -> None:
        """Record that all clients were sent a join event."""
        self.ids[id_] = True

    def leave(self, id_: str) -> None:
        """Record that all clients were sent a leave event."""
        self.ids.pop(id_, None)

    def snapshot(self, present: Set[str]) -> None:
        """Record that a client that had no list was sent the ids of all members."""
        first, self._has_snapshot = not self._has_snapshot, True
        # An id that is both recorded and present keeps its value. A present id that is not recorded is in the lists of
        # all clients only if this client is the first with a list.
        for id_ in self.ids.keys() ^ present:
            self.ids[id_] = first and id_ in present


@dataclass(frozen=True, slots=True)
class Difference:
    """The events that correct the lists of clients.

    Args:
        joins: the info of each present id that may be missing from a client's list, by id.
        leaves: the ids that a client may have in its list, although they are not present.
    """

    joins: Mapping[str, Any]
    leaves: Sequence[str]


def compare(told: Mapping[str, bool], present: Mapping[str, Any]) -> Difference:
    """Return the events after which the lists of all clients contain exactly the present ids.

    Args:
        told: the ids that some client may have in its list. A value is True if all clients have the id.
        present: the info of each present id, by id.
    """
    return Difference(
        joins={id_: info for id_, info in present.items() if not told.get(id_)},
        leaves=[id_ for id_ in told if id_ not in present],
    )
