"""The pub/sub connections to a Redis Cluster: one to each node whose streams have subscriptions.

A channel is in the slot of its stream's partition. With sharded pub/sub (Redis 7 or later), a message stays on the node
that has the slot. Older servers send each message to all nodes.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from redis.exceptions import MovedError, ResponseError

from reliable_cable.conf.redis_urls import Address
from reliable_cable.exceptions import StoreError
from reliable_cable.logs import logger

from .client import BaseClient
from .cluster import ClusterClient
from .cluster_node import NodeClient
from .keys import key_slot
from .pubsub import Deliver, PubSub
from .topology import Topology

#: The time, in seconds, between two checks whether channels have moved to other nodes.
ROUTE_INTERVAL: Final = 0.5

#: How long, in seconds, to wait after `renew` has subscribed to channels again, before the next check.
RENEWAL_DELAY: Final = 0.05


class NodePubSub(PubSub):
    """The pub/sub connection to one node.

    Args:
        client: the client of the node.
        report_move: a function that is called if a channel may have moved to another node.
    """

    _subscribe_command = "SSUBSCRIBE"
    _unsubscribe_command = "SUNSUBSCRIBE"

    def __init__(self, client: NodeClient, report_move: Callable[[], None]) -> None:
        super().__init__(client)
        self._report_move = report_move
        #: The channels whose subscriptions the node has ended or refused, because it did not have their slots.
        self._ended: set[str] = set()

    @property
    def unused(self) -> bool:
        """Whether there are no subscriptions."""
        return not self._channels

    async def renew(self) -> bool:
        """Subscribe again to channels that the node has ended or refused, and that were not moved to another node.

        Their slots were moved away and back, or the node that reported the slots did not know of the move yet.

        Returns:
            Whether there were such channels.
        """
        channels = [channel for channel in self._ended if channel in self._channels]
        self._ended.clear()
        await self._send(self._subscribe_command, channels)
        return bool(channels)

    async def unsubscribe_all(self) -> None:
        """End all subscriptions, which closes the connection."""
        for channel, state in list(self._channels.items()):
            for deliver in tuple(state.callbacks):
                await self.unsubscribe(channel, deliver)

    @staticmethod
    def _other_names(channel: str) -> tuple[str, ...]:
        return ()  # earlier releases do not support clusters

    async def _send(self, command: str, channels: Sequence[str]) -> None:
        if command in ("SUBSCRIBE", "UNSUBSCRIBE"):
            await super()._send(command, channels)
            return
        # All channels in a command must be in the same slot.
        for _, group in groupby(sorted(channels, key=key_slot), key=key_slot):
            await super()._send(command, list(group))

    def _handle(self, reply: Any) -> None:
        if isinstance(reply, list) and reply[0] == b"sunsubscribe" and reply[1] is not None:
            channel = reply[1].decode()
            if channel in self._channels:
                # The slot was moved, and the node has ended the subscription.
                self._ended.add(channel)
                self._report_move()
        else:
            super()._handle(reply)

    def _handle_error(self, error: ResponseError) -> None:
        if isinstance(error, MovedError):
            for channel in [each for each in self._unconfirmed if key_slot(each) == error.slot_id]:
                del self._unconfirmed[channel]
                self._ended.add(channel)
            self._report_move()
            return
        if "unknown command" in str(error).lower():
            # Servers before Redis 7 have no sharded pub/sub.
            self._subscribe_command, self._unsubscribe_command = "SUBSCRIBE", "UNSUBSCRIBE"
        raise error


class ClusterPubSub:
    """Subscribes to each channel on the node that has its slot, and follows slots that are moved to other nodes.

    `pubsub_of` returns the object of the running event loop. All its methods must be called on that loop.

    Args:
        client: the client of the cluster.
    """

    def __init__(self, client: BaseClient) -> None:
        assert isinstance(client, ClusterClient)  # noqa: S101 - for the type checker; `pubsub_of` ensures this
        self._client = client
        self._channels: dict[str, dict[Deliver, None]] = {}
        #: The address of the node on which each channel is subscribed to.
        self._homes: dict[str, Address] = {}
        self._nodes: dict[Address, NodePubSub] = {}
        self._topology: Topology | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the connections to all nodes are open. A lost one counts as open until the loss has been noticed."""
        return bool(self._nodes) and all(node.connected for node in self._nodes.values())

    async def subscribe(self, delivers: Mapping[str, Deliver]) -> None:
        """Subscribe to channels. Each channel's function is then called with each message on the channel.

        If a node cannot be reached, this method returns nevertheless, and the functions are called with None as soon as
        the node, or the one that takes its place, has confirmed the subscriptions.

        Args:
            delivers: the functions, by channel.
        """
        for channel, deliver in delivers.items():
            self._channels.setdefault(channel, {})[deliver] = None
        if self._task is None and delivers:
            self._task = asyncio.create_task(self._keep_routed(), name="cable-cluster-pubsub")
        try:
            topology = await self._client.atopology()
        except StoreError as error:
            logger.debug("The channels are subscribed to later: %s", error)
            self._wake.set()
            return
        groups: dict[Address, dict[str, Deliver]] = {}
        for channel, deliver in delivers.items():
            if channel not in self._channels:
                continue  # `unsubscribe` was called in the meantime
            home = self._homes.get(channel) or topology.owner(key_slot(channel))
            if home is None:
                self._wake.set()
                continue
            self._homes[channel] = home
            groups.setdefault(home, {})[channel] = deliver
        nodes = [(self._node(address), group) for address, group in groups.items()]
        # All subscriptions are recorded before this method waits. Otherwise, `_leave` could drop a node meanwhile.
        added = [(node, node.add(group)) for node, group in nodes]
        await asyncio.gather(*(node.confirm(each) for node, each in added))

    async def unsubscribe(self, channel: str, deliver: Deliver) -> None:
        """Stop calling `deliver` for a channel."""
        delivers = self._channels.get(channel)
        if delivers is None:
            return
        delivers.pop(deliver, None)
        home = self._homes.get(channel)
        if not delivers:
            del self._channels[channel]
            self._homes.pop(channel, None)
        if home is not None:
            await self._leave(home, channel, [deliver])
        if not self._channels and self._task is not None:
            task, self._task = self._task, None
            nodes, self._nodes = self._nodes, {}
            task.cancel()
            await asyncio.wait([task])
            # The task may have been moving channels from one node to another.
            for node in nodes.values():
                await node.unsubscribe_all()

    async def fence(self) -> None:
        """Wait until each message that was published before this call has been delivered or is lost."""
        await asyncio.gather(*(node.fence() for node in tuple(self._nodes.values())))

    # -- the nodes ----------------------------------------------------------------------------------------------------

    def _node(self, address: Address) -> NodePubSub:
        if address not in self._nodes:
            self._nodes[address] = NodePubSub(self._client.node(address), self._report_move)
        return self._nodes[address]

    def _report_move(self) -> None:
        self._topology = None
        self._wake.set()

    async def _leave(self, home: Address, channel: str, delivers: Iterable[Deliver]) -> None:
        node = self._nodes.get(home)
        if node is None:
            return
        for deliver in delivers:
            await node.unsubscribe(channel, deliver)
        if node.unused and self._nodes.get(home) is node:
            del self._nodes[home]

    async def _keep_routed(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUTE_INTERVAL):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._route()
            except StoreError as error:
                logger.debug("The nodes of the channels could not be determined: %s", error)
            except Exception:
                logger.exception("The channels could not be moved to other nodes of the Redis Cluster.")

    async def _route(self) -> None:
        """Subscribe to channels on the nodes that have their slots now."""
        known = self._client.slots.topology
        lost = self._topology is None or not self.connected
        topology = await self._client.atopology(stale=known if lost else None)
        if topology is self._topology and len(self._homes) == len(self._channels):
            return
        moved: dict[Address, list[str]] = {}
        for channel in self._channels:
            owner = topology.owner(key_slot(channel))
            if owner is not None and owner != self._homes.get(channel):
                moved.setdefault(owner, []).append(channel)
        self._topology = topology
        await asyncio.gather(*(self._move(channels, owner) for owner, channels in moved.items()))
        if any([await node.renew() for node in tuple(self._nodes.values())]):
            await asyncio.sleep(RENEWAL_DELAY)  # the node may refuse again until the nodes agree

    async def _move(self, channels: Sequence[str], owner: Address) -> None:
        """Subscribe to channels on another node, and report that messages may have been missed."""
        former = {channel: self._homes.get(channel) for channel in channels if channel in self._channels}
        rounds: list[dict[str, Deliver]] = []
        for channel in former:
            self._homes[channel] = owner
            for number, deliver in enumerate(self._channels[channel]):
                if number == len(rounds):
                    rounds.append({})
                rounds[number][channel] = deliver
        for delivers in rounds:
            await self._node(owner).subscribe(delivers)
        for channel, home in former.items():
            joined = [group[channel] for group in rounds if channel in group]
            if home is not None:
                await self._leave(home, channel, joined)
            wanted = self._channels.get(channel, {})
            await self._leave(owner, channel, [deliver for deliver in joined if deliver not in wanted])
            for deliver in tuple(wanted):
                PubSub.call(deliver, None)
