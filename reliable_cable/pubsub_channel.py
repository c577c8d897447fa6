"""The built-in channels of public and signed streams (see Protocol: Signed streams)."""

from fnmatch import fnmatchcase
from typing import Any

from .channel import Channel, channel_prefix
from .conf import get_settings
from .exceptions import InvalidStreamName
from .namespaces import namespace_of, split_namespace
from .signing import verify_stream_name
from .validation import check_stream_name


class PubSubChannel(Channel):
    """A subscription to the stream that its params name.

    `signed_stream_name` is a name with a signature. `stream_name` is a name without one. It is used only if the stream
    is public and there is no `signed_stream_name`.
    """

    name = "$pubsub"

    # The handlers are async because they neither block nor query a database. Sync handlers would run in a thread.
    async def subscribed(self) -> None:
        """Start the stream that the params name, or reject the subscription."""
        signed = self.params.get("signed_stream_name")
        stream = self.params.get("stream_name") if signed is None else signed_stream(self)
        try:
            name = check_stream_name(stream)
        except InvalidStreamName:
            return self.reject()
        if signed is None and not is_public(name):
            return self.reject()
        whisper = signed is None or get_settings().signed_streams_whisper
        self.stream_from(name, whisper=whisper, presence=True)

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the protocol's name
        """Allow every subscriber of the stream to join its presence. The id is only a claim of the client."""
        return True


class TurboStreamsChannel(Channel):
    """A subscription of the element that `{% turbo_stream_from %}` renders.

    `signed_stream_name` is the name of the stream, with a signature. Clients can neither whisper nor join presence.
    """

    name = "Turbo::StreamsChannel"

    async def subscribed(self) -> None:
        """Start the stream that the params name, or reject the subscription."""
        try:
            self.stream_from(check_stream_name(signed_stream(self)))
        except InvalidStreamName:
            self.reject()


def signed_stream(channel: Channel) -> str | None:
    """Return the name in the param `signed_stream_name`; None if the signature or the namespace is wrong."""
    signed = channel.params.get("signed_stream_name")
    name = verify_stream_name(signed) if isinstance(signed, str) else None
    namespace, stream = split_namespace(name or "")
    return stream if namespace == namespace_of(channel.connection) else None


def is_public(stream: str) -> bool:
    """Return whether clients may subscribe to a stream by its name, without a signature.

    A pattern of `PUBLIC_STREAMS` has to match the name. For the stream of a channel, such as `ChatChannel:chat.room:1`,
    the pattern has to begin with `ChatChannel:`, too. So `"*"` opens no stream of a channel.
    """
    prefix = channel_prefix(stream)
    return any(fnmatchcase(stream, pattern) and pattern.startswith(prefix) for pattern in get_settings().public_streams)
