"""One node of a Redis Cluster, and the lineages of the partitions on it.

Each partition has a lineage record of its own (see keys.py), because a record must be in the slot of the data. When a
slot is moved to another primary, its record moves with it, and the lineage stays. When a node is restarted, or a
replica is promoted, each of its partitions gets a new lineage.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import NoScriptError, RedisError, ResponseError

from reliable_cable.conf import CableSettings
from reliable_cable.conf.redis_urls import Address, split_redis_url

from .client import RedisClient
from .exchange import Command, Exchange, send
from .lineage import CHECK_INTERVAL, Identity, LineageTracker, read_info, record_arguments
from .scripts import script_sha, script_text

#: How long, in seconds, a process uses a lineage before it reads the record again, which renews the record's TTL.
MAX_LINEAGE_AGE: Final = 3600.0

#: How long, in seconds, a process relies on its last finding about the former server of moved data.
MAX_ORIGIN_AGE: Final = 2.0

#: The last argument of lineage.lua if `find_origins` has no recent result for the record. If another server wrote the
#: record, the script then returns the run_id and replid of that server.
ASK: Final = "?"


class Foreign(ResponseError):
    """The result of a call whose lineage record was written by another server. The call was not sent.

    Args:
        key: the key of the lineage record.
        run_id: the run_id of the other server.
        replid: the replication id that the other server had.
        former_replid: the replication id that this node had before it was promoted; zeros if it was not promoted.
    """

    def __init__(self, key: str, run_id: str, replid: str, former_replid: str) -> None:
        super().__init__(f"the lineage record {key} was written by another server")
        self.key = key
        self.run_id = run_id
        self.replid = replid
        self.former_replid = former_replid


@dataclass(slots=True)
class _Known:
    """The lineage that one server process has reported for a partition."""

    run_id: str
    token: str
    check_at: float
    expires: float


class PartitionLineages:
    """The lineages of the partitions, as this process last read them. All methods are thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        #: All lineages that this process has received, by the key of the record.
        self._seen: dict[str, set[str]] = {}
        #: The last argument of lineage.lua (see `origin`) and the time when it was found out, by the key of the record.
        self._origins: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def token(self, key: str) -> str:
        """Return the lineage of a partition; `""` if it is not known yet."""
        known = self._known.get(key)
        return "" if known is None else known.token

    def argument(self, key: str, run_id: str) -> str | None:
        """Return the lineage as an argument of a script; None if it must first be read from this server.

        After each `CHECK_INTERVAL`, it once has the prefix `?`, which makes the script check the replication id, too.
        """
        known, now = self._known.get(key), time.monotonic()
        if known is None or known.run_id != run_id or now > known.expires:
            return None
        if now < known.check_at:
            return known.token
        known.check_at = now + CHECK_INTERVAL
        return f"?{known.token}"

    def record(self, key: str, run_id: str, token: str) -> bool:
        """Record the lineage that a server has reported.

        Returns:
            Whether the lineage was recorded. It is not recorded if the data have an old lineage again, after this
            process has seen a newer one. It must then be replaced, because one offset could belong to different
            messages.
        """
        with self._lock:
            seen = self._seen.setdefault(key, set())
            known = self._known.get(key)
            if token in seen and known is not None and known.token != token:
                return False
            seen.add(token)
            now = time.monotonic()
            self._known[key] = _Known(run_id, token, now + CHECK_INTERVAL, now + MAX_LINEAGE_AGE)
            self._origins.pop(key, None)
            return True

    def forget(self, key: str) -> None:
        """Have the lineage of a partition read again before its next use. Until then, `token` returns the old one."""
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                known.expires = 0.0

    def origin(self, key: str) -> str:
        """Return the last argument of lineage.lua for a partition."""
        found, found_at = self._origins.get(key, (ASK, 0.0))
        return found if time.monotonic() - found_at < MAX_ORIGIN_AGE else ASK

    def set_origin(self, foreign: Foreign, *, unbroken: bool) -> None:
        """Record whether the data of a foreign record come from a primary that has lost nothing."""
        with self._lock:
            found = foreign.run_id if unbroken else f"-{foreign.run_id}"
            self._origins[foreign.key] = (found, time.monotonic())


class _NodeTracker(LineageTracker):
    """Keeps track of a node's server process, but not of a lineage, because each partition on the node has its own."""

    def _handshake(self, connection: Any) -> Exchange[None]:
        generation = self._generation
        info = yield from read_info()
        connection.info = info
        self._accept(connection, Identity(info["run_id"], ""), generation)


class NodeClient(RedisClient):
    """Runs calls on one node of a cluster.

    Args:
        settings: the settings of the cluster.
        address: the host and port of the node.
        lineages: the lineages of the partitions of all nodes.
    """

    def __init__(self, settings: CableSettings, address: Address, lineages: PartitionLineages) -> None:
        self._lineages_of_partitions = lineages
        self.address = address
        assert settings.redis_url is not None  # noqa: S101 - for the type checker; `read_settings` ensures this
        super().__init__(settings, split_redis_url(settings.redis_url).server(*address))

    def _new_tracker(self) -> LineageTracker:
        return _NodeTracker("")

    def _note_refusals(self, connection: Any, replies: Sequence[Any]) -> None:
        # If a partition has a new lineage, the client of the cluster reads it again. No connection must be reopened.
        super()._note_refusals(connection, [reply for reply in replies if "DATAMOVED" not in str(reply)[:80]])

    def _lineages(self, records: Sequence[str], connection: Any, asking: bool) -> Exchange[Mapping[str, Any]]:
        keys = dict.fromkeys(filter(None, records))
        info = connection.info
        found: dict[str, Any] = {key: self._lineages_of_partitions.argument(key, info["run_id"]) for key in keys}
        unknown = [key for key, argument in found.items() if argument is None]
        if unknown:
            # The replication may have changed since the connection was opened.
            info = connection.info = yield from read_info()
        # The records that must be read, by key. Each value is a lineage that must be replaced, or "".
        wanted = dict.fromkeys(unknown, "")
        while wanted:
            replies = yield from self._read_records(wanted, info, asking)
            again: dict[str, str] = {}
            for (key, replaced), reply in zip(wanted.items(), replies, strict=True):
                if isinstance(reply, RedisError):
                    found[key] = reply
                elif isinstance(reply, list):
                    run_id, replid = (each.decode() for each in reply)
                    found[key] = Foreign(key, run_id, replid, info.get("master_replid2", ""))
                elif self._lineages_of_partitions.record(key, info["run_id"], reply.decode()):
                    found[key] = reply.decode()
                elif not replaced:
                    again[key] = reply.decode()
                else:
                    found[key] = ResponseError("DATAMOVED the data have an earlier lineage again")
            wanted = again
        return found

    def _read_records(self, wanted: Mapping[str, str], info: dict[str, str], asking: bool) -> Exchange[list[Any]]:
        """Run lineage.lua for partitions, and return the replies.

        Args:
            wanted: the lineages that must be replaced by new ones, by the key of the record; `""` to replace none.
            info: the fields of the node's reply to INFO.
            asking: whether to send ASKING before each command.
        """
        commands: list[Command] = [
            (
                "EVALSHA",
                script_sha("lineage"),
                1,
                key,
                *record_arguments(info, replaced),
                self._lineages_of_partitions.origin(key),
            )
            for key, replaced in wanted.items()
        ]
        replies = yield from send(commands, asking)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            yield [("SCRIPT", "LOAD", script_text("lineage"))]
            replies = yield from send(commands, asking)
        return replies
