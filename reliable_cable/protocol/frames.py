"""WebSocket frames as they go over the wire, made once and shared by all who are sent them (RFC 6455, RFC 7692)."""

from __future__ import annotations

import zlib

_TEXT = 0x81  # FIN, and the opcode of a text
_COMPRESSED = 0x40  # RSV1

#: Of the window of what is compressed (4 KB). With 15 a short message takes 15 times as long, for nothing, and one of
#: 256 KB becomes smaller by a tenth.
WINDOW_BITS = 12
#: zlib's. With level 6 one of 256 KB takes 3 ms, in which nothing else happens, and not 2, to be smaller by a tenth.
LEVEL, MEMORY_LEVEL = 3, 5
#: Bytes of a message below which compressing it saves less than the headers of its packet take.
MIN_COMPRESSED = 256


def text_frame(payload: bytes) -> bytes:
    """Return a server's frame of one whole text message: unmasked, not compressed."""
    return _frame(_TEXT, payload)


def compressed_frame(payload: bytes) -> bytes:
    """Return a text message as a frame for every client with which permessage-deflate was agreed on.

    It refers to no other message (`server_no_context_takeover`). What does not become shorter is not compressed.
    """
    if len(payload) >= MIN_COMPRESSED:
        compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, MEMORY_LEVEL)
        compressed = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        # Without 00 00 ff ff, with which every such flush ends (RFC 7692, 7.2.1).
        compressed = compressed[:-4]
        if len(compressed) < len(payload):
            return _frame(_TEXT | _COMPRESSED, compressed)
    return _frame(_TEXT, payload)


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


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
            self._wire = self._make()
            return self._wire

    def _make(self) -> bytes:
        return text_frame(self.encode())


class CompressedFrame(Frame):
    """The same for clients with which permessage-deflate was agreed on; no other may be sent it."""

    __slots__ = ()

    def _make(self) -> bytes:
        return compressed_frame(self.encode())
