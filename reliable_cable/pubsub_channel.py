"""The built-in channels for public and signed streams (see Protocol: Signed streams)."""

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

#: Matches a time that `{% turbo_stream_from %}` has rendered, in seconds since 1970.
_TIME: Final = re.compile(r"[0-9]{1,12}\.[0-9]{6}")


class PubSubChannel(Channel):
    """Lets clients subscribe to a stream by its name, without a channel of the application.

    The param `signed_stream_name` is a signed name. If it is missing, the param `stream_name` is used, which is the
    name of a public stream. If the signed name contains a position, or the param `after` is a position, the messages
    after this position are sent first.
    """

    name = "$pubsub"

    # The handlers are async, because they never block. Sync handlers would run in a thread, which takes more time.
    async def subscribed(self) -> None:
        """Start the requested stream, or reject the subscription."""
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
        """Allow every subscriber to join presence under any id. So the id does not prove who the member is."""
        return True


class TurboStreamsChannel(Channel):
    """The channel of the element that `{% turbo_stream_from %}` renders.

    The param `signed_stream_name` is the signed name of the stream, and may contain a position. The messages after this
    position are sent first. If there is no position, the messages since the time in the param `since` are sent first.
    This is the time at which the request for the web page began. It needs no signature, because every client may
    request the history of its streams.

    Clients can neither whisper nor join presence.
    """

    name = "Turbo::StreamsChannel"

    async def subscribed(self) -> None:
        """Start the requested stream, or reject the subscription."""
        stream, at = signed_stream(self)
        try:
            name = qualify_stream(check_stream_name(stream), namespace_of(self.connection))
        except InvalidStreamName:
            return self.reject()
        since = self.params.get("since")
        began = float(since) if isinstance(since, str) and _TIME.fullmatch(since) else None
        self.reply.streams.append(StreamStart(name, after=start_position(at, name), since=began))


def signed_stream(channel: Channel) -> tuple[str | None, PagePosition | None]:
    """Return the name and the position in the param `signed_stream_name` of a channel.

    If the signature or the namespace is wrong, the name is None or `""`. The position is None if the signed name
    contains none.
    """
    signed = channel.params.get("signed_stream_name")
    name, at = (verify_signed_stream(signed) if isinstance(signed, str) else None) or ("", None)
    namespace, stream = split_namespace(name)
    return (stream, at) if namespace == namespace_of(channel.connection) else (None, None)


def is_public(stream: str) -> bool:
    """Return whether clients may subscribe to a stream without a signed name.

    A pattern in `PUBLIC_STREAMS` must match the name. If the name begins with the name of a channel, as in
    `ChatChannel:chat.room:1`, the pattern must begin with `ChatChannel:`, too. So `"*"` matches no stream of a channel.
    No pattern matches a name that begins with one of `private_prefixes`.
    """
    if stream.startswith(tuple(private_prefixes)):
        return False
    prefix = channel_prefix(stream)
    return any(fnmatchcase(stream, pattern) and pattern.startswith(prefix) for pattern in get_settings().public_streams)
