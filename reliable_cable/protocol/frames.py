"""WebSocket frames as they go over the wire, made once and shared by all who are sent them (RFC 6455, 5.2)."""

from __future__ import annotations

_TEXT = 0x81  # FIN, and the opcode of a text


def text_frame(payload: bytes) -> bytes:
    """Return a server's frame of one whole text message: unmasked, not compressed."""
    size = len(payload)
    if size < 126:
        return bytes((_TEXT, size)) + payload
    if size < 65536:
        return bytes((_TEXT, 126)) + size.to_bytes(2, "big") + payload
    return bytes((_TEXT, 127)) + size.to_bytes(8, "big") + payload


class Frame(str):
    """A message's text that is sent to many: its frame is made when it is first asked for, and kept."""

    __slots__ = ("_wire",)
    _wire: bytes

    @property
    def wire(self) -> bytes:
        """The text as a WebSocket frame."""
        try:
            return self._wire
        except AttributeError:
            self._wire = text_frame(self.encode())
            return self._wire
