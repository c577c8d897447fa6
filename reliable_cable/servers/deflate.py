"""permessage-deflate (RFC 7692) that costs one compression a message, not one for each of its subscribers:

    uvicorn --ws reliable_cable.servers.deflate:CompressingWebSocketProtocol project.asgi:application

With `server_no_context_takeover` a compressed message refers to none before it, so that it is the same for all clients.
It also leaves nothing of zlib's to be kept for a connection.
"""

from __future__ import annotations

from collections.abc import Sequence

from websockets.exceptions import NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.typing import ExtensionParameter

from reliable_cable.protocol.frames import LEVEL, MEMORY_LEVEL, WINDOW_BITS, CompressedFrame, Frame

from .uvicorn import CableWebSocketProtocol


class _SharedDeflate(ServerPerMessageDeflateFactory):
    """Agrees to what makes compressed messages the same for all clients, and with nobody who wants them otherwise."""

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
        """Answer an offer.

        Raises:
            NegotiationError: it makes no sense, or allows less of a window than the shared frames have.
        """
        response, extension = super().process_request_params(params, accepted_extensions)
        if extension.local_max_window_bits < WINDOW_BITS:
            raise NegotiationError(f"frames have a window of {WINDOW_BITS} bits")
        return response, extension


class CompressingWebSocketProtocol(CableWebSocketProtocol):
    """uvicorn's WebSocket protocol with frames that are compressed once for all clients that take them so.

    Clients that offer no permessage-deflate, or only with less of a window, are sent the plain frames.
    """

    extensions = (_SharedDeflate(),)

    @property
    def form(self) -> type[Frame]:
        """In which the client takes frames, once the handshake was read."""
        return CompressedFrame if self.conn.extensions else Frame
