"""The transport of a connection without a socket."""

from __future__ import annotations

from typing import Any


class AsyncioTransport:
    """The part of an asyncio transport that the package uses."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.reading = True
        self.closing = self.aborted = False
        self.protocol: Any = None

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True
