"""Compresses each message once for all subscribers, with permessage-deflate (RFC 7692).

Use it with uvicorn:

    uvicorn --ws reliable_cable.servers.deflate:CompressingWebSocketProtocol project.asgi:application

The protocol negotiates `server_no_context_takeover`. With this option, compressed messages do not depend on earlier
messages, and are the same for all clients. Also, connections do not need the memory of a zlib context.
"""

from collections.abc import Sequence

# This import comes first, because its error names the extra to install if uvicorn is missing.
from .uvicorn import CableWebSocketProtocol  # isort: skip
from websockets.exceptions import NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.typing import ExtensionParameter

from reliable_cable.protocol.frames import LEVEL, MEMORY_LEVEL, WINDOW_BITS, CompressedFrame, Frame


class _SharedDeflate(ServerPerMessageDeflateFactory):
    """The extension permessage-deflate, with options that make a compressed message the same for all clients."""

    def __init__(self) -> None:
        super().__init__(
            server_no_context_takeover=True,
            client_no_context_takeover=True,
            server_max_window_bits=WINDOW_BITS,
            client_max_window_bits=WINDOW_BITS,
            compress_settings={"level": LEVEL, "memLevel": MEMORY_LEVEL},
        )

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        """Answer a client's offer of permessage-deflate.

        Raises:
            NegotiationError: the offer is invalid, or its window is smaller than the window of shared frames. The
                connection is then not compressed.
        """
        response, extension = super().process_request_params(params, accepted_extensions)
        if extension.local_max_window_bits < WINDOW_BITS:
            raise NegotiationError(f"shared frames have a window of {WINDOW_BITS} bits")
        return response, extension


class CompressingWebSocketProtocol(CableWebSocketProtocol):
    """uvicorn's WebSocket protocol with frames that are compressed once for all clients.

    A client that does not offer permessage-deflate, or that offers only a smaller window, receives uncompressed frames.
    """

    extensions = (_SharedDeflate(),)

    @property
    def form(self) -> type[Frame]:
        """The class of frames that the client can read. It is known after the handshake."""
        return CompressedFrame if self.conn.extensions else Frame
