"""The built-in channels of public and signed streams (see Protocol: Signed streams)."""

import re
from fnmatch import fnmatchcase
from typing import Any, Final

from .channel import Channel, channel_prefix
from .conf import get_settings
from .exceptions import InvalidStreamName
from .namespaces import namespace_of, split_namespace
from .protocol.positions import PagePosition
from .reply import StreamStart
from .signing import verify_signed_stream
from .validation import check_stream_name, private_prefixes, qualify_stream, start_position

#: A time as `{% turbo_stream_from %}` writes it: seconds since 1970.
_TIME: Final = re.compile(r"[0-9]{1,12}\.[0-9]{6}")


class PubSubChannel(Channel):
    """A subscription to the stream that its params name.

    `signed_stream_name` is a name with a signature. `stream_name` is a name without one. It is used only if the stream
    is public and there is no `signed_stream_name`. The messages after a position of the page are sent, too: after that
    in the signed name, or else after `after`.
    """

    name = "$pubsub"

    # The handlers are async because they neither block nor query a database. Sync handlers would run in a thread.
    async def subscribed(self) -> None:
        """Start the stream that the params name, or reject the subscription."""
        signed = self.params.get("signed_stream_name")
        stream, at = (self.params.get("stream_name"), None) if signed is None else signed_stream(self)
        try:
            name = check_stream_name(stream)
        except InvalidStreamName:
            return self.reject()
        if signed is None and not is_public(name):
            return self.reject()
        whisper = signed is None or get_settings().signed_streams_whisper
        self.stream_from(name, whisper=whisper, presence=True, after=at or self.params.get("after"))

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the protocol's name
        """Allow every subscriber of the stream to join its presence. The id is only a claim of the client."""
        return True


class TurboStreamsChannel(Channel):
    """A subscription of the element that `{% turbo_stream_from %}` renders.

    `signed_stream_name` is the name of the stream, perhaps with a position of the page, and a signature. Clients can
    neither whisper nor join presence.

    `since` is when the request of the page began. Without a position, the messages since then are sent. It needs no
    signature, because every client may request the history of its streams.
    """

    name = "Turbo::StreamsChannel"

    async def subscribed(self) -> None:
        """Start the stream that the params name, or reject the subscription."""
        stream, at = signed_stream(self)
        try:
            name = qualify_stream(check_stream_name(stream), namespace_of(self.connection))
        except InvalidStreamName:
            return self.reject()
        since = self.params.get("since")
        began = float(since) if isinstance(since, str) and _TIME.fullmatch(since) else None
        self.reply.streams.append(StreamStart(name, after=start_position(at, name), since=began))


def signed_stream(channel: Channel) -> tuple[str | None, PagePosition | None]:
    """Return the name and the position in the param `signed_stream_name`.

    The name is None if the signature or the namespace is wrong. The position is None if there is none.
    """
    signed = channel.params.get("signed_stream_name")
    name, at = (verify_signed_stream(signed) if isinstance(signed, str) else None) or ("", None)
    namespace, stream = split_namespace(name)
    return (stream, at) if namespace == namespace_of(channel.connection) else (None, None)


def is_public(stream: str) -> bool:
    """Return whether clients may subscribe to a stream by its name, without a signature.

    A pattern of `PUBLIC_STREAMS` has to match the name. For the stream of a channel, such as `ChatChannel:chat.room:1`,
    the pattern has to begin with `ChatChannel:`, too. So `"*"` opens no stream of a channel. Nothing opens the streams
    of `private_prefixes`.
    """
    if stream.startswith(tuple(private_prefixes)):
        return False
    prefix = channel_prefix(stream)
    return any(fnmatchcase(stream, pattern) and pattern.startswith(prefix) for pattern in get_settings().public_streams)
