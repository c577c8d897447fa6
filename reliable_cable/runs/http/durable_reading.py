"""The responses to requests that read durable streams: without `live`, with `live=long-poll`, and with `live=sse`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Final

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from reliable_cable.http.core import Refusal
from reliable_cable.runs.durable.access import DurableStreams
from reliable_cable.runs.durable.framing import data_event, event, is_text, join
from reliable_cable.runs.durable.reading import Chunk, Trimmed
from reliable_cable.runs.durable.storage import NotFound

from .durable_requests import LONG_POLL, SSE, next_cursor
from .durable_sources import Source
from .limits import open_readers
from .outages import RETRY_SOON, is_temporary, log_outage
from .reading import TOO_MANY, Interrupted, open_reader
from .requests import Visitor
from .streaming import PING, SILENCE, STREAM_HEADERS, StreamBody

NEXT_OFFSET: Final = "Stream-Next-Offset"
UP_TO_DATE: Final = "Stream-Up-To-Date"
CLOSED: Final = "Stream-Closed"
CURSOR: Final = "Stream-Cursor"
ENCODING: Final = "Stream-SSE-Data-Encoding"

#: The number of bytes that a response with `live=sse` may send to a reader that is catching up. The response then ends,
#: and the client sends another request. Some servers, such as daphne, buffer unread data of a client without limit.
MAX_CATCH_UP: Final = 4 * 2**20

#: How long, in seconds, a client should wait before it repeats a request after it has reached a rate limit.
RETRY_LATER: Final = 60


def gone(source: Source, trimmed: Trimmed) -> Refusal:
    """Return the refusal of a request for data that are no longer stored."""
    return Refusal(
        HTTPStatus.GONE,
        "The data at this offset are no longer stored. Read from 'earliest', or from now.",
        earliest=source.earliest(trimmed),
    )


def data_response(
    request: HttpRequest, source: Source, after: int | None, chunk: Chunk, **headers: str
) -> HttpResponse:
    """Return the response with a chunk of data. If the client already has this response, the status is 304.

    Args:
        request: the request.
        source: the stream to read.
        after: the position before the chunk.
        chunk: the data.
        headers: more headers.
    """
    state = f"{':u' if chunk.up_to_date else ''}{':c' if chunk.closed else ''}"
    tag = f'"{source.key}:{source.generation}:{after}:{chunk.end}{state}"'
    response = HttpResponse(
        headers={
            "Content-Type": source.content_type,
            # The data belong to a user. Only the browser may cache them, and asks each time whether they have changed.
            "Cache-Control": "private, no-cache",
            "ETag": tag,
            **position_headers(source, chunk),
            **headers,
        }
    )
    if tag in [known.strip() for known in request.headers.get("If-None-Match", "").split(",")]:
        response.status_code = HTTPStatus.NOT_MODIFIED
        del response.headers["Content-Type"]
    else:
        response.content = join(chunk.pieces, source.content_type)
    return response


def position_headers(source: Source, chunk: Chunk) -> dict[str, str]:
    """Return the headers with the offset after a chunk of data, and with the state of the stream at this offset."""
    headers = {NEXT_OFFSET: source.offset(chunk.end)}
    if chunk.up_to_date:
        headers[UP_TO_DATE] = "true"
    if chunk.closed:
        headers[CLOSED] = "true"
    return headers


async def respond(
    request: HttpRequest, visitor: Visitor, source: Source, after: int | None, times: DurableStreams
) -> HttpResponseBase:
    """Return the response to a request that reads a stream.

    Args:
        request: the request.
        visitor: the user who reads.
        source: the stream to read.
        after: the position before the data; None for the end of the stream.
        times: the `DurableStreams` object of the project, which contains the durations of live responses.
    """
    try:
        chunk = await (source.tail() if after is None else source.read(after))
    except Trimmed as trimmed:
        raise gone(source, trimmed) from None
    match request.GET.get("live"):
        case str(live) if live == SSE:
            open_readers().check(visitor)
            return stream_data(request, visitor, source, chunk, times.sse_time)
        case str(live) if live == LONG_POLL:
            return await wait_for_data(request, visitor, source, chunk, times.long_poll_time)
    response = data_response(request, source, after, chunk)
    if after is None:
        del response.headers["ETag"]
        response.headers["Cache-Control"] = "no-store"
    return response


# -- live -------------------------------------------------------------------------------------------------------------


async def follow(
    source: Source, visitor: Visitor, after: int, *, until: float, silence: float
) -> AsyncGenerator[Chunk | None, None]:
    """Yield new data of a stream. Yield None if there are none for a while. End after a chunk that is `closed`.

    Args:
        source: the stream to read.
        visitor: the user who reads.
        after: the position before the new data.
        until: the time, by the clock of the event loop, at which to stop.
        silence: how long, in seconds, to wait for data before None is yielded.

    Raises:
        Interrupted, NotFound, Trimmed: the data cannot be read any more.
        Refusal: the user has too many open readers.
    """
    loop = asyncio.get_running_loop()
    async with open_reader(source.channel.__name__, source.key, visitor, history=False) as reader:
        while (rest := until - loop.time()) > 0:
            try:
                async with asyncio.timeout(min(rest, silence)):
                    frame = await reader.next()
            except TimeoutError:
                yield None
                continue
            chunk = source.chunk_of(frame, after) or await source.read(after)
            while chunk.pieces or chunk.closed:
                yield chunk
                if chunk.closed:
                    return
                after = chunk.end
                if chunk.up_to_date or loop.time() >= until:
                    break
                chunk = await source.read(after)


async def wait_for_data(
    request: HttpRequest, visitor: Visitor, source: Source, chunk: Chunk, seconds: float
) -> HttpResponse:
    """Return the response to a request with `live=long-poll`.

    Args:
        request: the request.
        visitor: the user who reads.
        source: the stream to read.
        chunk: the data that the stream has after the offset of the request.
        seconds: how long to wait for data if there are none.
    """
    begin = chunk.pieces[0].number - 1 if chunk.pieces else chunk.end
    if not chunk.pieces and not chunk.closed:
        until = asyncio.get_running_loop().time() + seconds
        try:
            async with aclosing(follow(source, visitor, chunk.end, until=until, silence=seconds)) as chunks:
                async for found in chunks:
                    chunk = found or chunk
                    break
        except Trimmed as trimmed:
            raise gone(source, trimmed) from None
        except NotFound:
            raise Refusal(HTTPStatus.NOT_FOUND, "There is no such stream.") from None
        except Interrupted as interruption:
            if str(interruption) == TOO_MANY:
                raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY, retry_after=RETRY_LATER) from None
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(interruption), retry_after=RETRY_SOON) from None
    cursor = {} if chunk.closed else {CURSOR: next_cursor(request)}
    if chunk.pieces:
        return data_response(request, source, begin, chunk, **cursor)
    return HttpResponse(
        status=HTTPStatus.NO_CONTENT, headers={UP_TO_DATE: "true", **position_headers(source, chunk), **cursor}
    )


def stream_data(
    request: HttpRequest, visitor: Visitor, source: Source, chunk: Chunk, seconds: float
) -> StreamingHttpResponse:
    """Return the response to a request with `live=sse`.

    Args:
        request: the request.
        visitor: the user who reads.
        source: the stream to read.
        chunk: the data that the stream has after the offset of the request.
        seconds: how long the response lasts.
    """
    cursor = next_cursor(request)
    headers = {**STREAM_HEADERS, "Content-Type": "text/event-stream"}
    if not is_text(source.content_type):
        headers[ENCODING] = "base64"
    return StreamingHttpResponse(StreamBody(_events(source, visitor, chunk, seconds, cursor)), headers=headers)


async def _events(
    source: Source, visitor: Visitor, chunk: Chunk, seconds: float, cursor: str
) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    behind = 0  # the number of bytes that were sent before the reader had all data
    try:
        yield (part := _encode(source, chunk, cursor))
        while not chunk.up_to_date and chunk.pieces:
            behind += len(part)
            if behind >= MAX_CATCH_UP or loop.time() >= until:
                return
            chunk = await source.read(chunk.end)
            yield (part := _encode(source, chunk, cursor))
        if chunk.closed:
            return
        async with aclosing(follow(source, visitor, chunk.end, until=until, silence=SILENCE)) as chunks:
            async for found in chunks:
                yield (part := PING if found is None else _encode(source, found, cursor))
                if found is not None and not found.up_to_date:
                    behind += len(part)
                if behind >= MAX_CATCH_UP:
                    return
    except (Interrupted, NotFound, Trimmed, Refusal):
        return  # the response to the next request of the client says why
    except Exception as error:
        if not is_temporary(error):
            raise
        log_outage("GET", visitor.scope["path"], "was ended early", error)


def _encode(source: Source, chunk: Chunk, cursor: str) -> bytes:
    """Return the events for a chunk of data."""
    control: dict[str, Any] = {"streamNextOffset": source.offset(chunk.end)}
    if chunk.closed:
        control["streamClosed"] = True
    else:
        control["streamCursor"] = cursor
    if chunk.up_to_date:
        control["upToDate"] = True
    data = data_event(chunk.pieces, source.content_type) if chunk.pieces else b""
    return data + event("control", json.dumps(control, separators=(",", ":")))
