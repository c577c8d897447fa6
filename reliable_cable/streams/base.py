"""The former path of the interface of stream stores, for settings and engines that name it."""

from reliable_cable.stores.streams.base import (
    IDLE_STREAM_TTL,
    NOWHERE,
    YOUNG_SIZE,
    YOUNG_TIME,
    Advanced,
    Message,
    Published,
    StreamEvent,
    StreamListener,
    StreamStore,
    Transient,
    moved,
)

__all__ = [
    "IDLE_STREAM_TTL",
    "NOWHERE",
    "YOUNG_SIZE",
    "YOUNG_TIME",
    "Advanced",
    "Message",
    "Published",
    "StreamEvent",
    "StreamListener",
    "StreamStore",
    "Transient",
    "moved",
]
