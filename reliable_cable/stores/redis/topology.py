"""The assignment of the slots of a Redis Cluster to its nodes."""

import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from reliable_cable.conf.redis_urls import Address

from .keys import key_slot


@dataclass(frozen=True, slots=True)
class SlotRange:
    """A range of slots, and the address of the primary that has them."""

    first: int
    last: int
    address: Address


class Topology:
    """The primary of each slot, as one node of the cluster knew it. A topology is never changed.

    Args:
        ranges: the ranges of slots.
    """

    def __init__(self, ranges: Iterable[SlotRange]) -> None:
        self._ranges = sorted(ranges, key=lambda each: each.first)
        self._firsts = [each.first for each in self._ranges]

    @property
    def primaries(self) -> list[Address]:
        """The addresses of the primaries that have slots, in the order of their first slots."""
        return list(dict.fromkeys(each.address for each in self._ranges))

    def owner(self, slot: int) -> Address | None:
        """Return the address of the primary that has a slot; None if no node has it."""
        at = bisect_right(self._firsts, slot) - 1
        return self._ranges[at].address if at >= 0 and slot <= self._ranges[at].last else None

    def moved(self, slot: int, address: Address) -> "Topology":
        """Return a topology in which one slot has another primary."""
        ranges = [SlotRange(slot, slot, address)]
        for each in self._ranges:
            if each.first <= slot <= each.last:
                ranges += [
                    SlotRange(first, last, each.address)
                    for first, last in ((each.first, slot - 1), (slot + 1, each.last))
                    if first <= last
                ]
            else:
                ranges.append(each)
        return Topology(ranges)


class Slots:
    """The newest known topology of a cluster, and the partitions that were moved. All methods are thread-safe.

    Args:
        partitions: the prefixes of all partitions.
    """

    def __init__(self, partitions: Sequence[str]) -> None:
        self._partitions = partitions
        #: The newest topology; None before the slots are read for the first time.
        self.topology: Topology | None = None
        self._read_at = 0.0
        self._moved: set[str] = set()
        self._lock = threading.Lock()

    def must_be_read(self, max_age: float) -> bool:
        """Return whether the caller must read the slots again, because they were read more than `max_age` seconds ago.

        Only one caller must read them. Meanwhile, other callers use the known slots.
        """
        if time.monotonic() - self._read_at <= max_age:
            return False
        with self._lock:
            now = time.monotonic()
            is_old = now - self._read_at > max_age
            if is_old:
                self._read_at = now
        return is_old

    def put(self, topology: Topology) -> None:
        """Store a topology that was read from a node."""
        with self._lock:
            self._replace(topology)
            self._read_at = time.monotonic()

    def note_move(self, slot: int, address: Address, seen: Topology) -> None:
        """Record the new primary of a slot, which a node has named in a reply. The slots are read again soon.

        Args:
            slot: the slot.
            address: the address of the primary.
            seen: the topology by which the call was sent. A newer topology is not changed.
        """
        with self._lock:
            if self.topology is seen:
                self._replace(seen.moved(slot, address))
                self._read_at = 0.0

    def take_moved(self) -> set[str]:
        """Return the partitions that have moved to other nodes since the last call."""
        if not self._moved:
            return set()
        with self._lock:
            moved, self._moved = self._moved, set()
        return moved

    def put_back(self, moved: set[str]) -> None:
        """Have the next call of `take_moved` return these partitions again."""
        with self._lock:
            self._moved |= moved

    def _replace(self, topology: Topology) -> None:
        former, self.topology = self.topology, topology
        if former is not None:
            for partition in self._partitions:
                slot = key_slot(partition)
                if former.owner(slot) != topology.owner(slot):
                    self._moved.add(partition)


def parse_slots(reply: Sequence[Any], host: str) -> Topology:
    """Return the topology in a reply to CLUSTER SLOTS.

    Args:
        reply: the reply.
        host: the host of the node that has sent the reply. It is used for nodes that do not know their own host.
    """
    ranges = []
    for first, last, primary, *_ in reply:
        name = primary[0].decode() if primary[0] else host
        if name != "?":
            ranges.append(SlotRange(int(first), int(last), (name, int(primary[1]))))
    return Topology(ranges)


def parse_primaries(reply: bytes, host: str) -> list[Address]:
    """Return the addresses of the primaries in a reply to CLUSTER NODES, including those without slots.

    Primaries that have failed are left out.

    Args:
        reply: the reply.
        host: the host of the node that has sent the reply. It is used for nodes whose host is not in the reply.
    """
    found = []
    for line in reply.decode().splitlines():
        _, place, flags, *_ = line.split(" ")
        if "master" in flags.split(",") and "fail" not in flags.split(","):
            address, _, name = place.partition(",")
            address = address.partition("@")[0]
            ip, _, port = address.rpartition(":")
            found.append(((name.partition(",")[0] or ip) if name and not ip else ip or host, int(port)))
    return found
