"""Reliable real-time streams for Django Channels: no gap, no repeat, in order, across dropped connections."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .broadcasting import (
        abroadcast,
        abroadcast_batch,
        aforget,
        ahistory,
        aposition,
        broadcast,
        broadcast_batch,
        forget,
        history,
        position,
    )
    from .channel import Channel, action, state
    from .consumer import CableConsumer
    from .disconnecting import adisconnect, disconnect
    from .exceptions import (
        AsyncContextError,
        BroadcastError,
        BroadcastUncertain,
        CableError,
        ChannelError,
        InvalidIdentifier,
        InvalidOption,
        InvalidPayload,
        InvalidStreamName,
        PayloadTooLarge,
        StoreError,
    )
    from .presence import presence_for
    from .protocol.positions import StreamPosition
    from .signing import signed_stream_name

__version__ = "0.1.0"

#: The module of each public name. It is imported when the name is first used: importing this package must not need
#: Django's settings.
_MODULES = {
    **dict.fromkeys(
        [
            "abroadcast",
            "abroadcast_batch",
            "aforget",
            "ahistory",
            "aposition",
            "broadcast",
            "broadcast_batch",
            "forget",
            "history",
            "position",
        ],
        "broadcasting",
    ),
    **dict.fromkeys(["Channel", "action", "state"], "channel"),
    "CableConsumer": "consumer",
    **dict.fromkeys(
        [
            "AsyncContextError",
            "BroadcastError",
            "BroadcastUncertain",
            "CableError",
            "ChannelError",
            "InvalidIdentifier",
            "InvalidOption",
            "InvalidPayload",
            "InvalidStreamName",
            "PayloadTooLarge",
            "StoreError",
        ],
        "exceptions",
    ),
    "presence_for": "presence",
    "StreamPosition": "protocol.positions",
    **dict.fromkeys(["adisconnect", "disconnect"], "disconnecting"),
    "signed_stream_name": "signing",
}

__all__ = [
    "AsyncContextError",
    "BroadcastError",
    "BroadcastUncertain",
    "CableConsumer",
    "CableError",
    "Channel",
    "ChannelError",
    "InvalidIdentifier",
    "InvalidOption",
    "InvalidPayload",
    "InvalidStreamName",
    "PayloadTooLarge",
    "StoreError",
    "StreamPosition",
    "abroadcast",
    "abroadcast_batch",
    "action",
    "adisconnect",
    "aforget",
    "ahistory",
    "aposition",
    "broadcast",
    "broadcast_batch",
    "disconnect",
    "forget",
    "history",
    "position",
    "presence_for",
    "signed_stream_name",
    "state",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{module}", __name__), name)
