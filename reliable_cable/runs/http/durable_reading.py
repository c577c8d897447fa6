"""The responses to requests that read durable streams: at once, with `live=long-poll`, and with `live=sse`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Final

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

from reliable_cable.concurrency.threads import run_handler
from reliable_cable.http.core import Refusal
from reliable_cable.runs.durable.cable import DurableStreamChannel
from reliable_cable.runs.durable.framing import data_event, event, is_text, join, unpack
from reliable_cable.runs.durable.offsets import format_offset
from reliable_cable.runs.durable.reading import Chunk, Trimmed, read_chunk
from reliable_cable.runs.durable.storage import NotFound, reload
from reliable_cable.runs.durable_models import DurableStream

from .durable_requests import next_cursor
from .reading import READ_STORE, Event, Interrupted, open_reader
from .requests import Visitor
from .streaming import PING, SILENCE, STREAM_HEADERS, StreamBody

NEXT_OFFSET: Final = "Stream-Next-Offset"
UP_TO_DATE: Final = "Stream-Up-To-Date"
CLOSED: Final = "Stream-Closed"
CURSOR: Final = "Stream-Cursor"
ENCODING: Final = "Stream-SSE-Data-Encoding"


def gone(row: DurableStream, trimmed: Trimmed) -> Refusal:
    """Return the refusal of a request for data that are no longer stored."""
    return Refusal(
        HTTPStatus.GONE,
        "The data at this offset are no longer stored. Read from 'earliest', or from now.",
        earliest=format_offset(row.generation, trimmed.earliest),
    )


def data_response(request: HttpRequest, row: DurableStream, after: int, chunk: Chunk, **headers: str) -> HttpResponse:
    """Return the response with a chunk of data. If the client already has it, the status is 304.

    Args:
        request: the request.
        row: the row of the stream.
        after: the number of entries before the chunk.
        chunk: the data.
        headers: more headers.
    """
    tag = f'"{row.generation}:{after}:{chunk.end}{":u" if chunk.up_to_date else ""}{":c" if chunk.closed else ""}"'
    response = HttpResponse(
        headers={
            "Content-Type": row.content_type,
            # The data are those of a user. The browser may keep them, and asks each time whether there are more.
            "Cache-Control": "private, no-cache",
            "ETag": tag,
            **position_headers(row, chunk),
            **headers,
        }
    )
    if tag in [known.strip() for known in request.headers.get("If-None-Match", "").split(",")]:
        response.status_code = HTTPStatus.NOT_MODIFIED
        del response.headers["Content-Type"]
    else:
        response.content = join(chunk.pieces, row.content_type)
    return response


def position_headers(row: DurableStream, chunk: Chunk) -> dict[str, str]:
    """Return the headers that say how far a chunk of data goes."""
    headers = {NEXT_OFFSET: format_offset(row.generation, chunk.end)}
    if chunk.up_to_date:
        headers[UP_TO_DATE] = "true"
    if chunk.closed:
        headers[CLOSED] = "true"
    return headers


# -- live -------------------------------------------------------------------------------------------------------------


async def follow(
    row: DurableStream, scope: Mapping[str, Any], after: int, *, until: float, silence: float
) -> AsyncGenerator[Chunk | None, None]:
    """Yield new data of a stream. Yield None if there are none for a while. The last chunk is closed.

    Args:
        row: the row of the stream.
        scope: the ASGI scope of the request.
        after: the number of entries before the new data.
        until: the time, by the clock of the event loop, at which to stop.
        silence: how long, in seconds, to wait for data before None is yielded.

    Raises:
        Interrupted, NotFound, Trimmed: the data cannot be read any more.
    """
    loop = asyncio.get_running_loop()
    async with open_reader(DurableStreamChannel.__name__, str(row.pk), scope, history=False) as reader:
        while (rest := until - loop.time()) > 0:
            try:
                async with asyncio.timeout(min(rest, silence)):
                    entry = await reader.next()
            except TimeoutError:
                yield None
                continue
            chunk = _chunk_of(entry, after)
            if chunk is None:
                row = await run_handler(reload, row)
                chunk = await read_chunk(row, after)
            while chunk.pieces or chunk.closed:
                yield chunk
                if chunk.closed:
                    return
                after = chunk.end
                if chunk.up_to_date:
                    break
                chunk = await read_chunk(row, after)


def _chunk_of(entry: Event, after: int) -> Chunk | None:
    """Return the data of an entry that was broadcast, without those that the reader has. None if data are missing."""
    piece = None if entry is READ_STORE else unpack(entry)
    if piece is None or piece.number > after + 1:
        return None
    return Chunk([piece] if piece.number > after else [], max(piece.number, after), True, piece.end)


async def wait_for_data(
    request: HttpRequest, visitor: Visitor, row: DurableStream, after: int, chunk: Chunk, seconds: float
) -> HttpResponse:
    """Return the response to a request with `live=long-poll`.

    Args:
        request: the request.
        visitor: the user who reads.
        row: the row of the stream.
        after: the number of entries before the offset of the request.
        chunk: the data that the stream has.
        seconds: how long to wait for data if there are none.
    """
    if not chunk.pieces and not chunk.closed:
        until = asyncio.get_running_loop().time() + seconds
        try:
            async with aclosing(follow(row, visitor.scope, after, until=until, silence=seconds)) as chunks:
                async for found in chunks:
                    chunk = found or chunk
                    break
        except Trimmed as trimmed:
            raise gone(row, trimmed) from None
        except NotFound:
            raise Refusal(HTTPStatus.NOT_FOUND, "There is no such stream.") from None
        except Interrupted as interruption:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(interruption)) from None
    cursor = {} if chunk.closed else {CURSOR: next_cursor(request)}
    if chunk.pieces:
        return data_response(request, row, after, chunk, **cursor)
    return HttpResponse(
        status=HTTPStatus.NO_CONTENT, headers={UP_TO_DATE: "true", **position_headers(row, chunk), **cursor}
    )


def stream_data(
    request: HttpRequest, visitor: Visitor, row: DurableStream, chunk: Chunk, seconds: float
) -> StreamingHttpResponse:
    """Return the response to a request with `live=sse`.

    Args:
        request: the request.
        visitor: the user who reads.
        row: the row of the stream.
        chunk: the data that the stream has after the offset of the request.
        seconds: how long the response lasts.
    """
    cursor = next_cursor(request)
    headers = {**STREAM_HEADERS, "Content-Type": "text/event-stream"}
    if not is_text(row.content_type):
        headers[ENCODING] = "base64"
    return StreamingHttpResponse(StreamBody(_events(row, visitor, chunk, seconds, cursor)), headers=headers)


async def _events(
    row: DurableStream, visitor: Visitor, chunk: Chunk, seconds: float, cursor: str
) -> AsyncGenerator[bytes, None]:
    until = asyncio.get_running_loop().time() + seconds
    try:
        yield _encode(row, chunk, cursor)
        while not chunk.up_to_date and chunk.pieces:
            chunk = await read_chunk(row, chunk.end)
            yield _encode(row, chunk, cursor)
        if chunk.closed:
            return
        async with aclosing(follow(row, visitor.scope, chunk.end, until=until, silence=SILENCE)) as chunks:
            async for found in chunks:
                yield PING if found is None else _encode(row, found, cursor)
    except (Interrupted, NotFound, Trimmed):
        return  # the client sends another request, whose response says why


def _encode(row: DurableStream, chunk: Chunk, cursor: str) -> bytes:
    """Return the events for a chunk of data."""
    control: dict[str, Any] = {"streamNextOffset": format_offset(row.generation, chunk.end)}
    if chunk.closed:
        control["streamClosed"] = True
    else:
        control["streamCursor"] = cursor
    if chunk.up_to_date:
        control["upToDate"] = True
    data = data_event(chunk.pieces, row.content_type) if chunk.pieces else b""
    return data + event("control", json.dumps(control, separators=(",", ":")))
