"""The reply of a handler: changes and messages that it asked for, to be applied after it has returned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StreamStart:
    """A handler wants the subscription to stream from `name`."""

    name: str
    whisper: bool = False
    presence: bool = False


@dataclass(frozen=True, slots=True)
class StreamStop:
    """A handler wants the subscription to leave a stream; None: all of them."""

    name: str | None


@dataclass(frozen=True, slots=True)
class PresenceJoin:
    """A handler lets the subscription's user join as `id`."""

    id: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class PresenceLeave:
    """A handler lets the subscription's user leave."""


@dataclass(slots=True)
class Reply:
    """The changes and messages of a handler, in order. They are applied after it returned, dropped if it raised."""

    transmissions: list[str] = field(default_factory=list)
    streams: list[StreamStart | StreamStop] = field(default_factory=list)
    presence: list[PresenceJoin | PresenceLeave] = field(default_factory=list)
    rejected: bool = False
    #: Whether the handler changed the channel's state.
    changed: bool = False
