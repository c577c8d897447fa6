"""Encodes messages as WebSocket frames (RFC 6455), with or without compression (RFC 7692).

A broadcast is encoded once, and the same bytes are sent to all of its subscribers.
"""

import zlib
from collections.abc import Callable
from typing import ClassVar, Self

from . import messages

_TEXT = 0x81  # the FIN bit, and the opcode for text
_COMPRESSED = 0x40  # the RSV1 bit, which marks a compressed message

#: The size of the compression window, as an exponent of two. 12 stands for 4 KiB. With 15, the compression of a short
#: message takes 15 times as long, and the result is not smaller. For a message of 256 KB, the result is smaller by a
#: tenth.
WINDOW_BITS = 12
#: zlib's compression level. With 6, a message of 256 KB blocks the event loop for 3 ms instead of 2 ms, and the result
#: is smaller by a tenth.
LEVEL = 3
#: zlib's memory level, from 1 to 9. At a higher level, compression uses more memory.
MEMORY_LEVEL = 5
#: The minimum size of a message that is compressed, in bytes. For a shorter message, compression saves fewer bytes than
#: the headers of its packet take.
MIN_COMPRESSED = 256


def text_frame(payload: bytes, *, compressed: bool = False) -> bytes:
    """Return a text message as one unmasked frame.

    Args:
        payload: the text as UTF-8.
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
    """Return a text message as one frame for clients that have negotiated permessage-deflate.

    The compressed bytes are the same for all clients, because they do not depend on earlier messages
    (`server_no_context_takeover`). A message is not compressed if it is shorter than `MIN_COMPRESSED`, or if
    compression would not make it shorter.
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
    """The text of a message, and its WebSocket frame. The frame is encoded when it is first used, and then stored."""

    __slots__ = ("_wire",)

    #: The maximum number of bytes that are added to the text for each client. With 0, all clients are sent
    #: the same bytes.
    added: ClassVar[int] = 0

    _wire: bytes

    @property
    def wire(self) -> bytes:
        """The bytes of the WebSocket frame."""
        # Many frames are used only once. For such frames, `getattr` takes half as long as catching an AttributeError.
        wire: bytes | None = getattr(self, "_wire", None)
        if wire is None:
            wire = self._wire = self._encode_frame()
        return wire

    def _encode_frame(self) -> bytes:
        return text_frame(self.encode())

    @classmethod
    def broadcasts(cls, identifier: str, stream_id: str, epoch: str) -> Callable[[int, str], Self]:
        """Return a function that makes the frames for a stream's broadcasts, see `messages.broadcast_encoder`."""
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
    """A `Frame` for clients that have negotiated permessage-deflate. Other clients cannot read it."""

    __slots__ = ()

    def _encode_frame(self) -> bytes:
        return compressed_frame(self.encode())
