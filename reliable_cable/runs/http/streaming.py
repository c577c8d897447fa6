"""The responses that stream a run to a client as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Final, Self

from django.http import StreamingHttpResponse

from reliable_cable.consumer import get_hub
from reliable_cable.http.core import Refusal
from reliable_cable.protocol.messages import dumps
from reliable_cable.servers.events import EVENT_STREAM_HEADERS

from .reading import Interrupted, read_events
from .requests import Visitor
from .translating import Message, Translator

#: A comment, which clients ignore. It prevents proxies from closing a connection without data.
PING: Final = b": ping\n\n"

#: The time without events, in seconds, after which a comment is sent, so that proxies keep the connection open.
SILENCE: Final = 15.0

#: The headers of the response. `GZipMiddleware` does not compress a response that already has a content encoding.
STREAM_HEADERS: Final = {**EVENT_STREAM_HEADERS, "Content-Encoding": "identity"}


def encode(messages: Iterable[Message]) -> bytes:
    """Return messages as server-sent events."""
    return b"".join(b"data: %b\n\n" % dumps(message).encode() for message in messages)


def stream(
    run: str, visitor: Visitor, translator: Translator, *, headers: Mapping[str, str] | None = None, last: bytes = b""
) -> StreamingHttpResponse:
    """Return a response that streams a run.

    Args:
        run: the id of the run, which the visitor may read.
        visitor: the user who reads.
        translator: translates the events of the run to the messages of a protocol.
        headers: the headers of the protocol.
        last: the bytes to send after the last message.
    """
    return StreamingHttpResponse(
        StreamBody(_parts(run, visitor, translator, last)), headers={**STREAM_HEADERS, **(headers or {})}
    )


class StreamBody:
    """The body of a response that streams events. Django calls `close` after the last part, or if the client has left.

    Nothing is opened before Django asks for the first part. So nothing stays open if a middleware replaces the
    response.

    Args:
        parts: yields the parts of the body.
    """

    def __init__(self, parts: AsyncGenerator[bytes, None]) -> None:
        self._parts = parts
        #: The event loop in which the parts are read; None before the first part, and after the last one.
        self._loop: asyncio.AbstractEventLoop | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._loop = asyncio.get_running_loop()
        try:
            return await anext(self._parts)
        except BaseException:
            self._loop = None  # the generator has ended
            raise

    def close(self) -> None:
        """Close the generator, which is still running if the client left early. Django calls this in a thread."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        get_hub().tasks.spawn(self._parts.aclose())


async def _parts(run: str, visitor: Visitor, translator: Translator, last: bytes) -> AsyncGenerator[bytes, None]:
    """Yield the parts of the body of a response that streams a run."""
    yield encode(translator.start())
    try:
        async with aclosing(read_events(run, visitor, SILENCE)) as events:
            async for event in events:
                if event is None:
                    yield PING
                elif messages := translator.translate(event):
                    yield encode(messages)
                if translator.ended:
                    break
    except (Interrupted, Refusal) as error:
        yield encode(translator.fail(str(error)))
    if last:
        yield last
