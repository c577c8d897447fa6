"""Encodes messages as WebSocket frames (RFC 6455), with or without compression (RFC 7692).

A broadcast is encoded once, and the same bytes are sent to all of its subscribers.
"""

import zlib
from collections.abc import Callable
from typing import ClassVar, Self

from . import messages

_TEXT = 0x81  # FIN and the opcode for text
_COMPRESSED = 0x40  # RSV1

#: The size of the compression window, as a power of two: 4 KiB. With 15, a short message takes 15 times as long and
#: becomes no smaller; a message of 256 KB becomes smaller by a tenth.
WINDOW_BITS = 12
#: zlib's compression level. With 6, a message of 256 KB blocks the event loop for 3 ms instead of 2 ms, and becomes
#: smaller by a tenth.
LEVEL = 3
#: zlib's memory level.
MEMORY_LEVEL = 5
#: The smallest message, in bytes, that is compressed. For shorter ones, the saved bytes are fewer than the headers of
#: the packet.
MIN_COMPRESSED = 256


def text_frame(payload: bytes, *, compressed: bool = False) -> bytes:
    """Return a text message as one unmasked frame.

    Args:
        payload: the text, encoded.
        compressed: whether the payload is compressed.
    """
    first = _TEXT | _COMPRESSED if compressed else _TEXT
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def compressed_frame(payload: bytes) -> bytes:
    """Return a text message as one frame for clients that negotiated permessage-deflate.

    The compressed bytes do not depend on earlier messages (`server_no_context_takeover`), so that they are the same for
    all clients. A message that would not become shorter is not compressed.
    """
    if len(payload) >= MIN_COMPRESSED:
        compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, MEMORY_LEVEL)
        compressed = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        # A sync flush ends with 00 00 ff ff, which is not sent (RFC 7692, section 7.2.1).
        compressed = compressed[:-4]
        if len(compressed) < len(payload):
            return text_frame(compressed, compressed=True)
    return text_frame(payload)


class Frame(str):
    """The text of a message, with its WebSocket frame, which is encoded on first use and then kept."""

    __slots__ = ("_wire",)

    #: The most bytes that are added for each client; 0: the same bytes are sent to all clients.
    added: ClassVar[int] = 0

    _wire: bytes

    @property
    def wire(self) -> bytes:
        """The bytes of the WebSocket frame."""
        # `getattr` takes half of the time that catching an AttributeError would take. Many frames are used only once.
        wire: bytes | None = getattr(self, "_wire", None)
        if wire is None:
            wire = self._wire = self._encode_frame()
        return wire

    def _encode_frame(self) -> bytes:
        return text_frame(self.encode())

    @classmethod
    def broadcasts(cls, identifier: str, stream_id: str, epoch: str) -> Callable[[int, str], Self]:
        """Return a function that makes frames of broadcasts, see `messages.broadcast_encoder`."""
        encode = messages.broadcast_encoder(identifier, stream_id, epoch)
        return lambda offset, data: cls(encode(offset, data))

    @classmethod
    def transmission(cls, identifier: str, data: str) -> Self:
        """Return the frame of a message without a position, see `messages.transmission`."""
        return cls(messages.transmission(identifier, data))

    @classmethod
    def presence_event(cls, identifier: str, message: str) -> Self:
        """Return the frame of a presence message, see `messages.presence_event`."""
        return cls(messages.presence_event(identifier, message))


class CompressedFrame(Frame):
    """A `Frame` for clients that negotiated permessage-deflate. Other clients cannot read it."""

    __slots__ = ()

    def _encode_frame(self) -> bytes:
        return compressed_frame(self.encode())
