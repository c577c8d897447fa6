"""`$pubsub`: streams without a channel, public or signed (PROTOCOL.md, Streams, tokens and keys)."""

from __future__ import annotations

from typing import Any

from .channel import Channel
from .conf import get_settings
from .exceptions import InvalidStreamName
from .signing import verify_stream_name
from .validation import check_stream_name


class PubSubChannel(Channel):
    """Streams by name: `signed_stream_name`, or `stream_name` where `PUBLIC_STREAMS` is on; signed wins."""

    name = "$pubsub"

    # Not `def`: what neither waits nor asks a database needs no thread.
    async def subscribed(self) -> None:
        """Stream from what the params name, or reject."""
        settings = get_settings()
        signed = self.params.get("signed_stream_name")
        if signed is not None:
            stream = verify_stream_name(signed) if isinstance(signed, str) else None
            whisper = settings.signed_streams_whisper
        else:
            stream = self.params.get("stream_name") if settings.public_streams else None
            whisper = True
        try:
            check_stream_name(stream)
        except InvalidStreamName:
            return self.reject()
        self.stream_from(str(stream), whisper=whisper, presence=True)

    async def resubscribed(self) -> None:
        """Check again: a setting or a secret may have changed while the client was away."""
        await self.subscribed()

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the wire's name
        """Whoever may read a stream may be seen on it."""
        return True
