"""The client of a Redis Cluster. It sends each call to the node that has its keys.

redis-py's own cluster client is not used, because it sends calls again after a lost response, whether they are
idempotent or not. This client uses only redis-py's connections.

| reply of a node | what happens |
|---|---|
| MOVED: another node has the slot | the slots are read again, and the call is sent to that node |
| ASK: the slot is being moved, and the keys are already on another node | the call is sent to that node, after ASKING |
| TRYAGAIN: the slot is being moved, and the keys are on two nodes | the call is sent again until `MOVE_TIME` is over |

A node that sends one of these replies has not executed the call.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final

from redis.exceptions import AskError, MovedError, ResponseError, TryAgainError

from reliable_cable.conf import CableSettings
from reliable_cable.conf.redis_urls import Address, split_redis_url
from reliable_cable.exceptions import StoreError, reason
from reliable_cable.logs import logger

from .calls import LINEAGE, Call, RedisUnavailable, checked, is_unavailable
from .client import BaseClient
from .cluster_node import Foreign, NodeClient, PartitionLineages
from .keys import KeyNames, key_slot
from .lineage import parse_info
from .topology import Slots, Topology, parse_primaries, parse_slots

#: How long, in seconds, to send a call again while its keys are being moved to another node.
MOVE_TIME: Final = 8.0
#: The minimum and maximum delay, in seconds, before a call whose keys are being moved is sent again.
MOVE_DELAYS: Final = (0.01, 0.2)
#: The maximum number of times that a run sends calls again. Those after TRYAGAIN are limited by `MOVE_TIME` instead.
MAX_REDIRECTS: Final = 16
#: How long, in seconds, a process uses the slots before it reads them again.
TOPOLOGY_AGE: Final = 5.0
#: How long, in seconds, a node that has failed is asked for the slots only after all other nodes.
FAILURE_AGE: Final = 30.0


class ClusterClient(BaseClient):
    """Runs calls on the nodes of a cluster, from sync code in any thread (`run`) and from any event loop (`arun`).

    Args:
        settings: the settings; `redis_url`, `redis_options` and `key_prefix` are used.

    Raises:
        ImproperlyConfigured: `redis_options` has an option that connections do not accept.
    """

    #: A cluster has only this database.
    database = 0

    def __init__(self, settings: CableSettings) -> None:
        super().__init__(settings)
        assert settings.redis_url is not None  # noqa: S101 - for the type checker; `read_settings` ensures this
        self.names = KeyNames(settings.key_prefix, cluster=True)
        self._seeds = split_redis_url(settings.redis_url).addresses
        self.lineages = PartitionLineages()
        self._nodes: dict[Address, NodeClient] = {}
        self._lock = threading.Lock()
        #: The time of the last failure to reach a node or to get its response, by the monotonic clock.
        self._failed_at: dict[Address, float] = {}
        #: The slots of the nodes.
        self.slots = Slots(self.names.partitions())
        self.node(self._seeds[0])  # reports invalid options

    @property
    def place(self) -> str:
        """The addresses of the nodes in the setting."""
        return f"Redis Cluster at {', '.join(f'{host}:{port}' for host, port in self._seeds)}"

    def blocking(self) -> "BlockingClusterClient":
        """Return a client whose async methods block, instead of suspending their caller, for code without a loop."""
        return BlockingClusterClient(self)

    def node(self, address: Address) -> NodeClient:
        """Return the client of the node at an address."""
        with self._lock:
            node = self._nodes.get(address)
            if node is None:
                node = self._nodes[address] = NodeClient(self.settings, address, self.lineages)
            return node

    async def aservers(self) -> Sequence[BaseClient]:
        """Return a client for each primary that has slots."""
        topology = await self.atopology()
        return [self._runner(self.node(address)) for address in topology.primaries]

    async def alineages(self, partitions: Collection[str]) -> dict[str, str]:
        """Return the lineages of the data of partitions, as this process last saw them."""
        keys = {partition: self.names.lineage(partition) for partition in partitions}
        unknown = [key for key in keys.values() if not self.lineages.token(key)]
        await self.arun_all([Call("tails", [], [LINEAGE], beside=key) for key in unknown])
        return {partition: self.lineages.token(key) for partition, key in keys.items()}

    def close(self) -> None:
        """Close the connections of sync code."""
        for node in tuple(self._nodes.values()):
            node.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        for node in tuple(self._nodes.values()):
            await node.aclose()

    # -- running calls ------------------------------------------------------------------------------------------------

    async def arun(self, *calls: Call, idempotent: bool = False) -> list[Any]:
        """Async version of `run`, over connections of the running event loop."""
        run = _Run(self, calls, idempotent=idempotent)
        try:
            replies = await run.replies()
        except RedisUnavailable as error:
            raise RedisUnavailable(str(error), sent=run.sent) from error
        await self._follow_moves()
        return replies

    def _runner(self, node: NodeClient) -> BaseClient:
        """Return the client that runs the calls of this client on a node."""
        return node

    async def _attempt_on(self, node: NodeClient, calls: Sequence[Call], asking: bool) -> list[Any]:
        """Run calls on a node, and return their replies, which may be errors."""
        return await node._aattempt(calls, asking=asking)

    async def _gather(self, awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
        """Await several coroutines that raise no errors, and return their results."""
        if len(awaitables) == 1:
            return [await awaitables[0]]
        return list(await asyncio.gather(*awaitables))

    # -- the slots ----------------------------------------------------------------------------------------------------

    async def atopology(self, *, stale: Topology | None = None, first: Sequence[Address] = ()) -> Topology:
        """Return the slots of the nodes. If they are unknown, wrong or older than `TOPOLOGY_AGE`, read them first.

        Args:
            stale: a topology that has turned out to be wrong, and is not returned; None if there is none.
            first: the nodes that are asked first.

        Raises:
            RedisUnavailable: the slots had to be read, and no node could report them.
        """
        known = self.slots.topology
        if known is None or known is stale:
            return await self._read_topology(first)
        if self.slots.must_be_read(TOPOLOGY_AGE):
            try:
                return await self._read_topology(first)
            except StoreError as error:
                logger.debug("The slots of the Redis Cluster could not be read: %s", error)
        return known

    async def _read_topology(self, first: Sequence[Address]) -> Topology:
        known = self.slots.topology
        last_error: StoreError | None = None
        addresses = dict.fromkeys((*first, *(known.primaries if known else ()), *self._seeds, *self._nodes))
        # Nodes that have failed are asked last, because each node that hangs costs a timeout.
        for address in sorted(addresses, key=self._has_failed):
            try:
                (reply,) = checked(await self._attempt_on(self.node(address), [Call("CLUSTER SLOTS")], False))
            except StoreError as error:
                self._failed_at[address] = time.monotonic()
                last_error = error
                continue
            topology = parse_slots(reply, address[0])
            if topology.primaries:
                self.slots.put(topology)
                return topology
            last_error = RedisUnavailable(
                f"The node {address[0]}:{address[1]} has joined no Redis Cluster.", sent=False
            )
        assert last_error is not None  # noqa: S101 - there is at least one seed
        raise RedisUnavailable(f"No node of {self.place} answers. {last_error}", sent=False) from last_error

    def _has_failed(self, address: Address) -> bool:
        """Return whether a node could not be reached, or did not respond, within the last `FAILURE_AGE` seconds."""
        return time.monotonic() - self._failed_at.get(address, -FAILURE_AGE) < FAILURE_AGE

    async def _follow_moves(self) -> None:
        """Read the lineages of moved partitions on their new nodes.

        This must not be delayed, because the former nodes are asked for their identities, and may be shut down later.
        """
        moved = self.slots.take_moved()
        if not moved:
            return
        calls = [Call("tails", [], [LINEAGE], beside=self.names.lineage(partition)) for partition in moved]
        try:
            await _Run(self, calls, idempotent=True).replies()
        except StoreError as error:
            logger.debug("The lineages of moved slots could not be read: %s", error)
            self.slots.put_back(moved)

    # -- moved data ---------------------------------------------------------------------------------------------------

    async def find_origins(self, foreigners: Sequence[Foreign]) -> None:
        """Find out whether the data of foreign lineage records were moved from a primary that has lost nothing.

        The record names a server process. If that process is still a primary of the cluster, and has not been demoted
        since it wrote the record, the slot was moved from there. Otherwise, the node that has the data now may have
        been promoted or restarted.
        """
        infos: dict[str, Mapping[str, str]] = {}
        for address in await self._all_primaries():
            try:
                calls = [Call("INFO", [], ["server"]), Call("INFO", [], ["replication"])]
                replies = checked(await self._attempt_on(self.node(address), calls, False))
            except StoreError as error:
                logger.debug("The node %s:%s could not be asked for its identity: %s", *address, error)
                continue
            info = {**parse_info(replies[0]), **parse_info(replies[1])}
            infos[info.get("run_id", "")] = info
        for foreign in foreigners:
            self.lineages.set_origin(foreign, unbroken=_is_unbroken(foreign, infos.get(foreign.run_id)))

    async def _all_primaries(self) -> list[Address]:
        """Return the addresses of all primaries, including those that have no slots any more."""
        topology = await self.atopology()
        for address in topology.primaries:
            try:
                (reply,) = checked(await self._attempt_on(self.node(address), [Call("CLUSTER NODES")], False))
            except StoreError:
                continue
            return list(dict.fromkeys([*topology.primaries, *parse_primaries(reply, address[0])]))
        return topology.primaries


def _is_unbroken(foreign: Foreign, info: Mapping[str, str] | None) -> bool:
    if info is None or info.get("role") != "master":
        return False
    replid, promoted = info.get("master_replid"), info.get("master_replid2", "").strip("0") != ""
    return foreign.former_replid != replid and (replid == foreign.replid or not promoted)


class _Run:
    """One execution of `arun`.

    Args:
        client: the client.
        calls: the calls.
        idempotent: whether calls are sent again after a lost response.
    """

    def __init__(self, client: ClusterClient, calls: Sequence[Call], *, idempotent: bool) -> None:
        self._client = client
        self._calls = calls
        self._idempotent = idempotent
        self._replies: list[Any] = [None] * len(calls)
        #: Whether at least one of the calls may have been executed.
        self.sent = False
        #: The nodes to which calls are sent after ASKING, by the number of the call.
        self._asked: dict[int, Address] = {}
        self._topology: Topology | None = None
        #: The topology that turned out to be wrong, and the nodes that know a better one.
        self._stale: Topology | None = None
        self._hints: list[Address] = []

    async def replies(self) -> list[Any]:
        """Run the calls, and return their replies."""
        pending = list(range(len(self._calls)))
        deadline, delay = time.monotonic() + MOVE_TIME, MOVE_DELAYS[0]
        redirects = failures = 0
        while True:
            groups = await self._route(pending)
            results = await self._client._gather([self._send(*key, numbers) for key, numbers in groups.items()])
            again: list[int] = []
            for numbers, result in zip(groups.values(), results, strict=True):
                if isinstance(result, RedisUnavailable):
                    if failures or (result.sent and not self._idempotent):
                        raise result
                    # After a failover, another node has the slots.
                    self._stale = self._topology
                    again += numbers
                else:
                    again += result
            failures += any(isinstance(result, RedisUnavailable) for result in results)
            if not again:
                return checked(self._replies)
            pending = sorted(again)
            waiting = any(isinstance(self._replies[number], TryAgainError) for number in pending)
            redirects += not waiting
            if redirects > MAX_REDIRECTS or (waiting and time.monotonic() > deadline):
                raise self._give_up(pending)
            if waiting:
                await self._client.sleep(delay)
                delay = min(2 * delay, MOVE_DELAYS[1])

    def _give_up(self, pending: Sequence[int]) -> RedisUnavailable:
        reply = self._replies[pending[0]]
        return RedisUnavailable(
            f"Redis currently does not accept the command, since its keys are being moved: {reason(reply)}.",
            sent=self.sent,
        )

    async def _route(self, pending: Sequence[int]) -> dict[tuple[Address, bool], list[int]]:
        """Return the numbers of the calls for each node. The second element of a key says whether to send ASKING."""
        topology = self._topology = await self._client.atopology(stale=self._stale, first=self._hints)
        self._stale, self._hints = None, []
        groups: dict[tuple[Address, bool], list[int]] = {}
        for number in pending:
            asked = self._asked.pop(number, None)
            if asked is not None:
                groups.setdefault((asked, True), []).append(number)
                continue
            slot = self._slot(number)
            owner = topology.owner(slot) if slot is not None else topology.primaries[0]
            if owner is None:
                self._stale = topology
                raise RedisUnavailable(f"No node of the Redis Cluster has the slot {slot}.", sent=self.sent)
            groups.setdefault((owner, False), []).append(number)
        return groups

    def _slot(self, number: int) -> int | None:
        call = self._calls[number]
        key = call.keys[0] if call.keys else call.beside
        return key_slot(key) if key else None

    async def _send(self, address: Address, asking: bool, numbers: Sequence[int]) -> Any:
        """Send calls to a node. Return the numbers of the calls to send again, or the error of the connection."""
        client = self._client
        calls = [self._calls[number] for number in numbers]
        try:
            replies = await client._attempt_on(client.node(address), calls, asking)
        except RedisUnavailable as error:
            client._failed_at[address] = time.monotonic()
            self.sent = self.sent or error.sent
            return error
        again, foreigners = [], {}
        for number, reply in zip(numbers, replies, strict=True):
            refused = self._replies[number]
            self._replies[number] = reply
            if isinstance(reply, MovedError):
                target = (reply.host or address[0], reply.port)
                assert self._topology is not None  # noqa: S101 - `_route` has set it
                client.slots.note_move(reply.slot_id, target, self._topology)
                self._hints.append(target)
            elif isinstance(reply, AskError):
                self._asked[number] = (reply.host or address[0], reply.port)
            elif isinstance(reply, Foreign):
                foreigners[reply.key] = reply
            elif isinstance(reply, TryAgainError):
                pass
            elif is_unavailable(reply):
                if "DATAMOVED" in str(reply):
                    call = self._calls[number]
                    client.lineages.forget(client.names.lineage_of(call))
                self._stale = self._topology
                if is_unavailable(refused):
                    continue  # it was refused twice
            else:
                self.sent = self.sent or not isinstance(reply, ResponseError)
                continue
            again.append(number)
        if foreigners:
            try:
                await client.find_origins(list(foreigners.values()))
            except RedisUnavailable as error:
                return error
        return again


class BlockingClusterClient(ClusterClient):
    """A client whose async methods block, instead of suspending their caller, for code without an event loop.

    Args:
        client: the client whose sync connections are used.
    """

    def __init__(self, client: ClusterClient) -> None:
        vars(self).update(vars(client))

    def blocking(self) -> "BlockingClusterClient":
        """Return this client."""
        return self

    async def sleep(self, seconds: float) -> None:
        """Block the calling thread for `seconds` seconds, because it has no event loop."""
        time.sleep(seconds)  # noqa: ASYNC251 - no event loop is running

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Return a context manager that does nothing, because each call has the timeout of its connection."""
        return nullcontext()

    def _runner(self, node: NodeClient) -> BaseClient:
        return node.blocking()

    async def _attempt_on(self, node: NodeClient, calls: Sequence[Call], asking: bool) -> list[Any]:
        return node._attempt(calls, asking=asking)

    async def _gather(self, awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
        return [await each for each in awaitables]
