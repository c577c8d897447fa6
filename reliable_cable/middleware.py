"""Middleware that knows which client's page a request comes from, so that a broadcast can leave it out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase

HEADER: Final = "X-Socket-ID"

#: As long as a session id that the stores take.
MAX_LENGTH: Final = 64

_socket_id: ContextVar[str] = ContextVar("reliable_cable_socket_id", default="")


def current_socket_id() -> str:
    """Return the session id that the request being handled gave in `X-Socket-ID`; `""` without one."""
    return _socket_id.get()


class SocketIdMiddleware:
    """Reads the header `X-Socket-ID`, for `broadcast(…, to_others=True)`; in sync and async projects.

    The client's `cable.sessionId` holds the id; pages send it with the requests that cause broadcasts. A streamed
    response knows it, too, while it is produced.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Handle a request."""
        socket_id = _read(request)
        if self.is_async:
            return self._acall(request, socket_id)
        with _known(socket_id):
            response = self.get_response(request)
        assert isinstance(response, HttpResponseBase)  # noqa: S101 - for the type checker
        return _streamed(response, socket_id)

    async def _acall(self, request: HttpRequest, socket_id: str) -> HttpResponseBase:
        with _known(socket_id):
            response = await self.get_response(request)  # type: ignore[misc]
        return _streamed(response, socket_id)


def _read(request: HttpRequest) -> str:
    value = request.headers.get(HEADER, "")
    return value if len(value) <= MAX_LENGTH and value.isascii() and value.isprintable() else ""


@contextmanager
def _known(socket_id: str) -> Iterator[None]:
    # Not by a token: a response may be finished in a copy of the context in which it was begun.
    former = _socket_id.get()
    _socket_id.set(socket_id)
    try:
        yield
    finally:
        _socket_id.set(former)


def _streamed(response: HttpResponseBase, socket_id: str) -> HttpResponseBase:
    """Let the parts of a streamed response know the id, which are made after the middleware has returned."""
    # A file broadcasts nothing, and a server may send it without reading it here.
    if socket_id and isinstance(response, StreamingHttpResponse) and getattr(response, "file_to_stream", None) is None:
        content = response.streaming_content
        response.streaming_content = (
            _parts(content, socket_id) if isinstance(content, Iterator) else _aparts(content, socket_id)
        )
    return response


def _parts(content: Iterator[bytes], socket_id: str) -> Iterator[bytes]:
    while True:
        with _known(socket_id):
            part = next(content, None)
        if part is None:
            return
        yield part


async def _aparts(content: AsyncIterator[bytes], socket_id: str) -> AsyncIterator[bytes]:
    iterator = aiter(content)
    while True:
        with _known(socket_id):
            part = await anext(iterator, None)
        if part is None:
            return
        yield part
