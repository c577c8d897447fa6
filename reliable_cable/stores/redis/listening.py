"""The base class of the listeners of stores in Redis, and the pub/sub connections that they share."""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from functools import partial
from typing import Protocol

from reliable_cable.concurrency.per_loop import PerLoop
from reliable_cable.stores.base import Listener

from .client import BaseClient, RedisClient
from .cluster_pubsub import ClusterPubSub
from .pubsub import Deliver, PubSub


class ChannelListener(Listener):
    """Receives the messages on the channels of streams, over the pub/sub connection of the running event loop.

    Args:
        client: the Redis client of the store.
    """

    def __init__(self, client: BaseClient) -> None:
        self._client = client
        self._pubsub = pubsub_of(client)
        self._callbacks: dict[str, Deliver] = {}

    async def subscribe(self, stream: str) -> None:
        """Start announcing the events of a stream."""
        await self._subscribe_channels([stream])

    async def _subscribe_channels(self, streams: Collection[str]) -> None:
        callbacks = {stream: partial(self._receive, stream) for stream in streams if stream not in self._callbacks}
        self._callbacks |= callbacks
        await self._pubsub.subscribe({self._channel(stream): callback for stream, callback in callbacks.items()})

    async def unsubscribe(self, stream: str) -> None:
        """Stop announcing the events of a stream."""
        callback = self._callbacks.pop(stream, None)
        if callback is not None:
            await self._pubsub.unsubscribe(self._channel(stream), callback)

    async def close(self) -> None:
        """Unsubscribe from all streams."""
        for stream in list(self._callbacks):
            await self.unsubscribe(stream)

    def _channel(self, stream: str) -> str:
        return self._client.names.channel(stream)

    @abstractmethod
    def _receive(self, stream: str, message: bytes | None) -> None:
        """Deliver the event that a message contains.

        If the message is None, deliver an event which says that messages may have been missed.
        """


class PubSubConnection(Protocol):
    """The methods of `PubSub` and `ClusterPubSub` that listeners use."""

    @property
    def connected(self) -> bool:
        """Whether the connection is open. In a cluster, whether the connections to all nodes are open."""

    async def subscribe(self, delivers: Mapping[str, Deliver]) -> None:
        """Subscribe to channels."""

    async def unsubscribe(self, channel: str, deliver: Deliver) -> None:
        """Stop calling `deliver` for a channel."""

    async def fence(self) -> None:
        """Wait until each message that was published before this call has been delivered or is lost."""


def pubsub_of(client: BaseClient) -> PubSubConnection:
    """Return the pub/sub connection of the running event loop."""
    pubsubs: PerLoop[PubSubConnection] = client.pubsubs
    return pubsubs.get(partial(_new_pubsub, client))


def _new_pubsub(client: BaseClient) -> PubSubConnection:
    if isinstance(client, RedisClient):
        return PubSub(client)
    return ClusterPubSub(client)
