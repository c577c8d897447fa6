"""Records whether the messages that a client receives are compressed."""

from __future__ import annotations

from collections.abc import Sequence

from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader
from websockets.typing import ExtensionParameter

from reliable_cable.protocol.frames import WINDOW_BITS


class RecordingDeflate(PerMessageDeflate):
    """Records for each text frame whether it is compressed."""

    def __init__(self, *args: bool | int) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.compressed: list[bool] = []

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """Decode a received frame, and record whether it is compressed if it is a text frame."""
        if frame.opcode is Opcode.TEXT:
            self.compressed.append(frame.rsv1)
        return super().decode(frame, max_size=max_size)


class DeflateOffer(ClientPerMessageDeflateFactory):
    """Offers permessage-deflate; `agreed` is the extension that was negotiated."""

    agreed: RecordingDeflate | None = None

    def process_response_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[object]
    ) -> RecordingDeflate:
        """Return the extension with the parameters that the server has accepted."""
        found = super().process_response_params(params, accepted_extensions)  # type: ignore[arg-type]
        self.agreed = RecordingDeflate(
            found.remote_no_context_takeover,
            found.local_no_context_takeover,
            found.remote_max_window_bits,
            found.local_max_window_bits,
        )
        return self.agreed


def read(data: bytes) -> list[tuple[bool, str]]:
    """Decode the frames of a server. Return for each frame whether it is compressed, and its text."""
    extension = RecordingDeflate(True, True, WINDOW_BITS, WINDOW_BITS)
    stream = StreamReader()
    stream.feed_data(data)
    texts: list[str] = []
    while stream.buffer:
        try:
            next(Frame.parse(stream.read_exact, mask=False, extensions=[extension]))
        except StopIteration as parsed:
            texts.append(bytes(parsed.value.data).decode())
        else:
            raise AssertionError("a frame is incomplete")
    return list(zip(extension.compressed, texts, strict=True))
