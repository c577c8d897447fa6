"""What a client of `websockets` reads, and whether it came compressed."""

from __future__ import annotations

from collections.abc import Sequence

from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader
from websockets.typing import ExtensionParameter

from reliable_cable.protocol.frames import WINDOW_BITS


class NotingDeflate(PerMessageDeflate):
    """Notes of every text frame whether it came compressed."""

    def __init__(self, *args: bool | int) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.compressed: list[bool] = []

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """Decode a frame that has come."""
        if frame.opcode is Opcode.TEXT:
            self.compressed.append(frame.rsv1)
        return super().decode(frame, max_size=max_size)


class NotingFactory(ClientPerMessageDeflateFactory):
    """Offers what its base class does; `agreed` is what came of it."""

    agreed: NotingDeflate | None = None

    def process_response_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[object]
    ) -> NotingDeflate:
        """Take the server's answer."""
        found = super().process_response_params(params, accepted_extensions)  # type: ignore[arg-type]
        self.agreed = NotingDeflate(
            found.remote_no_context_takeover,
            found.local_no_context_takeover,
            found.remote_max_window_bits,
            found.local_max_window_bits,
        )
        return self.agreed


def read(data: bytes) -> list[tuple[bool, str]]:
    """Return the texts that are in a server's frames, each with whether it came compressed."""
    extension = NotingDeflate(True, True, WINDOW_BITS, WINDOW_BITS)
    stream = StreamReader()
    stream.feed_data(data)
    texts: list[str] = []
    while stream.buffer:
        try:
            next(Frame.parse(stream.read_exact, mask=False, extensions=[extension]))
        except StopIteration as parsed:
            texts.append(bytes(parsed.value.data).decode())
        else:
            raise AssertionError("a frame is not whole")
    return list(zip(extension.compressed, texts, strict=True))
