"""The views of durable streams, and of runs as durable streams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC
from http import HTTPMethod, HTTPStatus
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.encoding import escape_uri_path

from reliable_cable.concurrency.threads import run_handler
from reliable_cable.http.core import Refusal
from reliable_cable.http.cors import PREFLIGHT
from reliable_cable.runs.access import readable_run
from reliable_cable.runs.durable import storage
from reliable_cable.runs.durable.access import DurableStreams, durable_streams
from reliable_cable.runs.durable.appending import Append, Outcome, WriterState, expected_sequence
from reliable_cable.runs.durable.forking import ForkTooLarge, InvalidFork, create_fork
from reliable_cable.runs.durable.framing import BodyTooLarge, InvalidBody
from reliable_cable.runs.durable.offsets import NOW, START, InvalidOffset, format_offset, split_offset
from reliable_cable.runs.durable.reading import Trimmed
from reliable_cable.runs.durable_models import DurableStream
from reliable_cable.runs.models import Run

from .durable_reading import (
    CLOSED,
    CURSOR,
    ENCODING,
    NEXT_OFFSET,
    UP_TO_DATE,
    position_headers,
    respond,
)
from .durable_requests import check_name, parse_append, parse_creation, parse_fork, parse_position, parse_reading
from .durable_sources import BEGINNING, RunSource, StreamSource
from .endpoints import endpoint, to_django
from .requests import Visitor, invalid, read_body

_ADVICE: Final = "Append the data in smaller parts."

#: Headers of all responses. The first four keep a browser from showing the data of a stream as a page of this site.
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Disposition": "attachment",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Access-Control-Expose-Headers": ", ".join(
        [
            *(NEXT_OFFSET, UP_TO_DATE, CLOSED, CURSOR, ENCODING, "Stream-TTL", "Stream-Expires-At"),
            *("ETag", "Location", "Retry-After"),
            *("Producer-Epoch", "Producer-Seq", "Producer-Expected-Seq", "Producer-Received-Seq"),
        ]
    ),
}
_CORS: Final = {
    **PREFLIGHT,
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, If-None-Match, Stream-Seq, Stream-TTL, Stream-Expires-At, Stream-Closed, "
        "Stream-Forked-From, Stream-Fork-Offset, Stream-Fork-Sub-Offset, Producer-Id, Producer-Epoch, Producer-Seq, "
        "X-JID"
    ),
}


@endpoint(
    *(HTTPMethod.GET, HTTPMethod.HEAD, HTTPMethod.PUT, HTTPMethod.POST, HTTPMethod.DELETE), cors=_CORS, headers=_HEADERS
)
async def durable(request: HttpRequest, visitor: Visitor, name: str) -> HttpResponseBase:
    """Create, write, close, read or delete a durable stream."""
    check_name(name)
    try:
        return await _METHODS[request.method or ""](request, visitor, name)
    except storage.NotFound:
        raise Refusal(HTTPStatus.NOT_FOUND, "There is no such stream.") from None
    except storage.Forbidden:
        raise Refusal(HTTPStatus.FORBIDDEN, "You may read this stream, but not write it.") from None
    except storage.Gone:
        raise Refusal(HTTPStatus.GONE, "The stream was deleted.") from None
    except storage.Conflict as conflict:
        raise Refusal(HTTPStatus.CONFLICT, str(conflict)) from None
    except storage.TooManyStreams:
        raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, "You have too many streams. Delete some of them.") from None
    except storage.NotDurable:
        raise Refusal(
            HTTPStatus.NOT_IMPLEMENTED,
            "The streams 'durable:*' are not stored in the database of runs: in RELIABLE_CABLE['STREAMS'], they need "
            "the option 'durable', and RELIABLE_CABLE['DATABASE'] must be the database of reliable_cable.runs.",
        ) from None
    except Trimmed:
        raise Refusal(HTTPStatus.GONE, "The data of the stream to fork are no longer stored.") from None
    except ForkTooLarge:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The stream has too many data to be forked.") from None
    except InvalidFork as error:
        raise invalid(str(error)) from None
    except BodyTooLarge as error:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
    except InvalidBody as error:
        raise invalid(str(error)) from None


async def _put(request: HttpRequest, visitor: Visitor, name: str) -> HttpResponse:
    row, is_new = await run_handler(_create, request, visitor.user, name)
    response = HttpResponse(
        status=HTTPStatus.CREATED if is_new else HTTPStatus.OK,
        headers={"Content-Type": row.content_type, **_tail(row)},
    )
    if is_new:
        response.headers["Location"] = request.build_absolute_uri(escape_uri_path(request.path))
    return response


def _create(request: HttpRequest, user: Any, name: str) -> tuple[DurableStream, bool]:
    creation, fork = parse_creation(request), parse_fork(request, name)
    body = read_body(request, _ADVICE)
    if fork is not None:
        return create_fork(user, name, creation, fork, body)
    return storage.create(user, name, creation, body)


async def _post(request: HttpRequest, visitor: Visitor, name: str) -> HttpResponse:
    append, outcome, row, state = await run_handler(_append, request, visitor.user, name)
    return _appended(append, outcome, row, state)


def _append(request: HttpRequest, user: Any, name: str) -> tuple[Append, Outcome, DurableStream, WriterState]:
    row = storage.find(user, name, to_write=True)
    body = read_body(request, _ADVICE)
    append = parse_append(request, body)
    return (append, *storage.append(row, append, body))


def _appended(append: Append, outcome: Outcome, row: DurableStream, state: WriterState) -> HttpResponse:
    """Return the response to a request to append."""
    producer = append.producer
    if outcome in (Outcome.ACCEPTED, Outcome.REPEATED):
        response = HttpResponse(status=HTTPStatus.NO_CONTENT, headers=_tail(row))
        if producer is not None:
            response.headers["Producer-Epoch"] = str(producer.epoch)
            response.headers["Producer-Seq"] = str(expected_sequence(state, producer) - 1)
            if outcome is Outcome.ACCEPTED and append.has_data:
                response.status_code = HTTPStatus.OK
        return response
    status, message = _REFUSALS[outcome]
    response = to_django(Refusal(status, message).response())
    if row.closed:
        for key, value in _tail(row).items():
            response.headers[key] = value
    if producer is not None and outcome is Outcome.OLD_EPOCH:
        response.headers["Producer-Epoch"] = str(state.producers[producer.id][0])
    if producer is not None and outcome is Outcome.GAP:
        response.headers["Producer-Expected-Seq"] = str(expected_sequence(state, producer))
        response.headers["Producer-Received-Seq"] = str(producer.sequence)
    return response


_REFUSALS: Final[Mapping[Outcome, tuple[HTTPStatus, str]]] = {
    Outcome.CLOSED: (HTTPStatus.CONFLICT, "The stream is closed."),
    Outcome.OTHER_TYPE: (HTTPStatus.CONFLICT, "The stream has another content type."),
    Outcome.OLD_SEQUENCE: (HTTPStatus.CONFLICT, "The header Stream-Seq must be greater than the last one."),
    Outcome.OLD_EPOCH: (HTTPStatus.FORBIDDEN, "The producer has a later epoch."),
    Outcome.EPOCH_WITHOUT_START: (HTTPStatus.BAD_REQUEST, "A new epoch must begin with the Producer-Seq 0."),
    Outcome.GAP: (HTTPStatus.CONFLICT, "Requests of the producer before this one are missing."),
    Outcome.TOO_MANY_PRODUCERS: (HTTPStatus.TOO_MANY_REQUESTS, "The stream has too many producers."),
}


async def _delete(request: HttpRequest, visitor: Visitor, name: str) -> HttpResponse:
    await run_handler(_delete_stream, visitor.user, name)
    return HttpResponse(status=HTTPStatus.NO_CONTENT)


def _delete_stream(user: Any, name: str) -> None:
    storage.delete(storage.find(user, name, to_write=True))


async def _head(request: HttpRequest, visitor: Visitor, name: str) -> HttpResponse:
    row = await run_handler(storage.find, visitor.user, name)
    headers = {"Content-Type": row.content_type, **_tail(row)}
    if row.ttl is not None:
        headers["Stream-TTL"] = str(row.ttl)
    elif row.expires_at is not None:
        headers["Stream-Expires-At"] = row.expires_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return HttpResponse(headers=headers)


def _tail(row: DurableStream) -> dict[str, str]:
    headers = {NEXT_OFFSET: format_offset(row.generation, row.count)}
    if row.closed:
        headers[CLOSED] = "true"
    return headers


async def _get(request: HttpRequest, visitor: Visitor, name: str) -> HttpResponseBase:
    offset = parse_reading(request)
    row, rules = await run_handler(_find_to_read, visitor.user, name)
    after = parse_position(offset, row)
    return await respond(request, visitor, StreamSource(row), after, rules)


def _find_to_read(user: Any, name: str) -> tuple[DurableStream, DurableStreams]:
    return storage.find(user, name, renew=True), durable_streams() or DurableStreams()


# -- runs -------------------------------------------------------------------------------------------------------------


@endpoint(HTTPMethod.GET, HTTPMethod.HEAD, cors=_CORS, headers=_HEADERS)
async def durable_run(request: HttpRequest, visitor: Visitor, run: str) -> HttpResponseBase:
    """Read the events of a run as a durable stream. It is closed when the run has ended."""
    try:
        return await _read_run(request, visitor, run)
    except (Run.DoesNotExist, storage.NotFound):
        raise Refusal(HTTPStatus.NOT_FOUND, "There is no such run.") from None
    except InvalidOffset:
        raise invalid("The parameter offset must be an offset of the stream, -1 or now.") from None


async def _read_run(request: HttpRequest, visitor: Visitor, run: str) -> HttpResponseBase:
    found, rules = await run_handler(_find_run, run, visitor.user)
    source = RunSource(found)
    if request.method == HTTPMethod.HEAD:
        chunk = await source.tail()
        return HttpResponse(headers={"Content-Type": source.content_type, **position_headers(source, chunk)})
    offset = parse_reading(request)
    if offset in (START, NOW):
        position = BEGINNING if offset == START else None
    else:
        source.generation, position = split_offset(offset)
    return await respond(request, visitor, source, position, rules)


def _find_run(run: str, user: Any) -> tuple[Run, DurableStreams]:
    return readable_run(run, user), durable_streams() or DurableStreams()


_METHODS: Final[Mapping[str, Callable[[HttpRequest, Visitor, str], Awaitable[HttpResponseBase]]]] = {
    HTTPMethod.GET: _get,
    HTTPMethod.HEAD: _head,
    HTTPMethod.PUT: _put,
    HTTPMethod.POST: _post,
    HTTPMethod.DELETE: _delete,
}
