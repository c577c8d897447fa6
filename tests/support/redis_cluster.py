"""A Redis Cluster of real server processes for tests, whose slots can be moved and whose nodes can fail."""

from __future__ import annotations

import contextlib
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, Self

import redis

from reliable_cable.stores.redis.keys import SLOTS, key_slot
from tests.support.redis import PATIENCE, Binary, RedisServer, find_all_binaries, tls_options, wait_for
from tests.support.server import PORTS, free_port

#: The oldest version whose clusters have sharded pub/sub.
SHARDED = (7, 0)
#: How long, in seconds, a server tries to fail over after CLUSTER FAILOVER.
FAILOVER_TIME = 5.5


@cache
def cluster_binary() -> Binary | None:
    """Return the program for clusters: the first one that is found and has sharded pub/sub; None if there is none."""
    return next((binary for binary in find_all_binaries() if binary.version >= SHARDED), None)


class RedisCluster:
    """A cluster. Use it as a context manager, which starts and kills its nodes.

    Args:
        folder: the folder for the files of all nodes.
        primaries: the number of primaries.
        replicas: the number of replicas of each primary.
        node_timeout: how long, in seconds, a node may be silent before it counts as failed.
        binary: the program; None: see `cluster_binary`.
        certificate: the paths of a certificate and its key, if the URL is to use TLS. Slots cannot be moved then.
    """

    def __init__(
        self,
        folder: Path,
        *,
        primaries: int = 3,
        replicas: int = 0,
        node_timeout: float = 60.0,
        binary: Binary | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self.binary = binary or cluster_binary()
        self._certificate = certificate
        self._stack = ExitStack()
        self._ids: dict[int, str] = {}
        options = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": str(round(node_timeout * 1000)),
            "cluster-replica-validity-factor": "0",
            "repl-diskless-sync-delay": "0",
        }
        self.primaries = [self._node(folder / f"primary-{number}", options) for number in range(primaries)]
        self.replicas = [self._node(folder / f"replica-{number}", options) for number in range(primaries * replicas)]

    def _node(self, folder: Path, options: dict[str, str]) -> RedisServer:
        if self._certificate is not None:
            options = {**options, **tls_options(*self._certificate), "tls-cluster": "yes"}
        server = RedisServer(folder, self.binary, options)
        server.port = free_port()
        if server.binary.version >= SHARDED:
            server.options["cluster-port"] = str(free_port())
        else:
            # The port of the cluster bus is 10,000 higher. It must be above those that `free_port` returns, but below
            # those that the system uses for outgoing connections.
            while server.port + 10_000 not in range(PORTS.stop, 32_768):
                server.port = free_port()
        return server

    @property
    def nodes(self) -> list[RedisServer]:
        """All nodes."""
        return [*self.primaries, *self.replicas]

    @property
    def url(self) -> str:
        """The URL of the cluster, for `REDIS_URL`."""
        scheme = "redis" if self._certificate is None else "rediss"
        ports = [node.options.get("tls-port", node.port) for node in self.nodes]
        return f"{scheme}://{','.join(f'127.0.0.1:{port}' for port in ports)}"

    @property
    def alive(self) -> bool:
        """Whether all nodes are running."""
        return all(node.alive for node in self.nodes)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._form()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    # -- its state ----------------------------------------------------------------------------------------------------

    def slots(self) -> dict[int, list[tuple[int, int]]]:
        """Return the ranges of slots of each primary, by its port, as a running node knows them."""
        found: dict[int, list[tuple[int, int]]] = {}
        for first, last, primary, *_ in self._raw(self._living(), "CLUSTER", "SLOTS"):
            found.setdefault(primary[1], []).append((first, last))
        return found

    def owner(self, slot: int) -> RedisServer:
        """Return the primary that has a slot."""
        port = next(port for port, ranges in self.slots().items() if any(a <= slot <= b for a, b in ranges))
        return self.at(port)

    def at(self, port: int) -> RedisServer:
        """Return the node at a port."""
        return next(node for node in self.nodes if node.port == port)

    def cli(self, *args: Any) -> Any:
        """Run a command on the node that has its key, the first argument of the command. Run KEYS on all primaries."""
        if args[0] == "KEYS":
            return [key for port in self.slots() for key in self.at(port).cli(*args)]
        return self.owner(key_slot(str(args[1]))).cli(*args)

    def other(self, node: RedisServer) -> RedisServer:
        """Return a primary that has slots and is not `node`."""
        return next(self.at(port) for port in self.slots() if port != node.port)

    def replica_of(self, primary: RedisServer) -> RedisServer:
        """Wait for a running replica of a primary, and return it."""
        own, found = self._id(primary), list[RedisServer]()

        def find() -> bool:
            for line in self._raw(primary, "CLUSTER", "NODES").decode().splitlines():
                _, place, _, followed, *_ = line.split()
                node = self.at(int(place.split("@")[0].rpartition(":")[2]))
                if followed == own and node.alive and node.cli("INFO", "replication")["role"] == "slave":
                    found.append(node)
            return bool(found)

        wait_for(find, "the primary has no replica")
        return found[0]

    # -- changes ------------------------------------------------------------------------------------------------------

    def begin_move(self, slot: int, target: RedisServer) -> RedisServer:
        """Begin to move a slot to another primary, and return its former primary."""
        source = self.owner(slot)
        self._raw(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        self._raw(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))
        return source

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer, *, limit: int = 100_000) -> int:
        """Move up to `limit` keys of a slot that is being moved, and return their number."""
        keys = self._raw(source, "CLUSTER", "GETKEYSINSLOT", slot, limit)
        for key in keys:
            self._raw(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        return len(keys)

    def end_move(self, slot: int, target: RedisServer) -> None:
        """Complete the move of a slot. All keys of the slot must have been moved."""
        for node in (target, *(each for each in self.nodes if each is not target and each.alive)):
            with contextlib.suppress(redis.ResponseError):  # replicas take no slots
                self._raw(node, "CLUSTER", "SETSLOT", slot, "NODE", self._id(target))

    def move(self, slot: int, target: RedisServer) -> None:
        """Move a slot to another primary."""
        source = self.begin_move(slot, target)
        while self.move_keys(slot, source, target):
            pass
        self.end_move(slot, target)

    def fail_over(self, primary: RedisServer) -> RedisServer:
        """Let a replica take the place of its running primary without loss (CLUSTER FAILOVER), and return it.

        On a busy machine, another failover may follow.
        """
        replica = self.replica_of(primary)
        begun_at = 0.0

        def is_primary() -> bool:
            nonlocal begun_at
            if replica.cli("ROLE")[0] == "master":
                return True
            if time.monotonic() > begun_at + FAILOVER_TIME:  # the server gives up after this time on a busy machine
                self._raw(replica, "CLUSTER", "FAILOVER")
                begun_at = time.monotonic()
            return False

        wait_for(is_primary, "the replica did not become a primary")
        self.wait_for_agreement()
        return replica

    def replace(self, primary: RedisServer) -> None:
        """Kill a primary, wait until a replica has taken its place, and start it again."""
        self.replica_of(primary)
        primary.kill()
        self.wait_for_agreement()
        primary.start()

    def wait_for_agreement(self) -> None:
        """Wait until all running nodes agree which nodes have the slots, and all of these are running."""

        def agree() -> bool:
            views = {
                tuple(
                    sorted(
                        (first, last, primary[1]) for first, last, primary, *_ in self._raw(each, "CLUSTER", "SLOTS")
                    )
                )
                for each in self.nodes
                if each.alive
            }
            (view, *others) = views
            return not others and all(self.at(port).alive for _, _, port in view)

        wait_for(agree, "the nodes do not agree on the slots")

    def wait_until_whole(self) -> None:
        """Wait until all running nodes accept commands for all slots, and all replicas follow their primaries."""
        wait_for(lambda: all(self._is_ok(node) for node in self.nodes if node.alive), "the cluster is not whole")

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _form(self) -> None:
        first = self.primaries[0]
        for number, node in enumerate(self.nodes, 1):
            self._raw(node, "CLUSTER", "SET-CONFIG-EPOCH", number)
        for node in self.nodes[1:]:
            bus = node.options.get("cluster-port", node.port + 10_000)
            self._raw(first, "CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        count = len(self.primaries)
        for number, node in enumerate(self.primaries):
            start, stop = number * SLOTS // count, (number + 1) * SLOTS // count
            self._raw(node, "CLUSTER", "ADDSLOTS", *range(start, stop))
        wait_for(lambda: all(self._knows_all(node) for node in self.nodes), "the nodes did not meet")
        for number, node in enumerate(self.replicas):
            self._raw(node, "CLUSTER", "REPLICATE", self._id(self.primaries[number % count]))
        self.wait_until_whole()

    def _knows_all(self, node: RedisServer) -> bool:
        lines = self._raw(node, "CLUSTER", "NODES").decode().splitlines()
        return len(lines) == len(self.nodes) and not any("handshake" in line for line in lines)

    def _is_ok(self, node: RedisServer) -> bool:
        info = self._raw(node, "CLUSTER", "INFO").decode()
        if "cluster_state:ok" not in info or f"cluster_slots_ok:{SLOTS}" not in info:
            return False
        replication = node.cli("INFO", "replication")
        return bool(replication["role"] == "master" or replication["master_link_status"] == "up")

    def _id(self, node: RedisServer) -> str:
        if node.port not in self._ids:
            self._ids[node.port] = self._raw(node, "CLUSTER", "MYID").decode()
        return self._ids[node.port]

    def _living(self) -> RedisServer:
        return next(node for node in self.nodes if node.alive)

    @staticmethod
    def _raw(node: RedisServer, *command: Any) -> Any:
        """Run a command on a node, and return the reply without a conversion."""
        with redis.Redis(port=node.port, socket_timeout=PATIENCE, protocol=2) as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)
