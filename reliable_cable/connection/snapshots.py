"""Reads the snapshots that channels give of their streams (see Architecture: Delivery to a subscriber)."""

from functools import partial

from reliable_cable.channel import Channel
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.exceptions import ChannelError, StoreError
from reliable_cable.namespaces import split_namespace
from reliable_cable.protocol.payloads import is_falsy
from reliable_cable.protocol.positions import PagePosition
from reliable_cable.reply import Snapshot
from reliable_cable.validation import encode_channel_value, start_position

from .handlers import invoke_isolated


async def read_snapshot(channel: Channel, stream: str) -> tuple[PagePosition, str] | None:
    """Return the position of a snapshot, and its message as JSON text. None means that the channel has no snapshot.

    Args:
        channel: the channel, which overrides `snapshot`.
        stream: the name of the stream, with its namespace.

    Raises:
        StoreError: a database or store cannot be reached.
        ChannelError: `snapshot` returned a value other than a `Snapshot` or None. Or the snapshot cannot be used,
            because the message cannot be encoded or is falsy, or the position is not a position in the stream.
    """
    try:
        snapshot = await invoke_isolated(channel.connection, partial(channel.snapshot, split_namespace(stream)[1]))
    except Exception as error:
        if is_outage(error):
            raise StoreError(str(error)) from error
        raise
    if snapshot is None:
        return None
    described = f"{type(channel).__name__}: the snapshot"
    if not isinstance(snapshot, Snapshot):
        raise ChannelError(f"{described} is a {type(snapshot).__name__}; it must be a Snapshot or None.")
    position = start_position(snapshot.position, stream)
    if position is None or not isinstance(snapshot.position, PagePosition):
        raise ChannelError(f"{described} has no position of its stream.")
    text, _ = encode_channel_value(snapshot.data, described)
    if is_falsy(text):
        raise ChannelError(f"{described} is falsy. Clients drop falsy messages; wrap it in a dict.")
    return position, text
