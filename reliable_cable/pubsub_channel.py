"""`$pubsub`, the built-in channel of public and signed streams (see Protocol: Signed streams)."""

from __future__ import annotations

from typing import Any

from .channel import Channel
from .conf import get_settings
from .exceptions import InvalidStreamName
from .namespaces import split_namespace
from .signing import verify_stream_name
from .validation import check_stream_name


class PubSubChannel(Channel):
    """A subscription to the stream that its params name.

    `signed_stream_name` is a name with a signature. `stream_name` is a name without one. It is used only if
    `PUBLIC_STREAMS` is on and there is no `signed_stream_name`.
    """

    name = "$pubsub"

    # The handlers are async because they neither block nor query a database. Sync handlers would run in a thread.
    async def subscribed(self) -> None:
        """Stream from the stream that the params name, or reject the subscription."""
        settings = get_settings()
        signed = self.params.get("signed_stream_name")
        if signed is not None:
            stream = self._verify(signed)
            whisper = settings.signed_streams_whisper
        else:
            stream = self.params.get("stream_name") if settings.public_streams else None
            whisper = True
        try:
            check_stream_name(stream)
        except InvalidStreamName:
            return self.reject()
        self.stream_from(str(stream), whisper=whisper, presence=True)

    def _verify(self, signed: Any) -> str | None:
        """Return the name in a signed name; None if the signature or the namespace is wrong."""
        name = verify_stream_name(signed) if isinstance(signed, str) else None
        namespace, stream = split_namespace(name or "")
        return stream if namespace == getattr(self.connection, "namespace", "") else None

    async def resubscribed(self) -> None:
        """Check the name again: a setting or a secret may have changed while the client was away."""
        await self.subscribed()

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the protocol's name
        """Allow every subscriber of the stream to join its presence."""
        return True
