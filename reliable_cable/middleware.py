"""A Django middleware that reads the session id in a request, so that broadcasts can exclude the request's sender."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase

#: The request header that contains the session id of the web page's connection.
HEADER: Final = "X-Socket-ID"

_socket_id: ContextVar[str] = ContextVar("reliable_cable_socket_id", default="")


def current_socket_id() -> str:
    """Return the session id of the client that the running code serves; `""` if it is unknown.

    In a request, this is the header `X-Socket-ID`, which may be any string. In a handler of a channel, it is the
    session id of the client's connection.
    """
    return _socket_id.get()


def set_socket_id(socket_id: str) -> None:
    """Set the session id that `current_socket_id` returns in the current context."""
    _socket_id.set(socket_id)


class SocketIdMiddleware:
    """Reads the header `X-Socket-ID`, so that `broadcast(…, to_others=True)` excludes the connection of the sender.

    A web page must send its `cable.sessionId` in this header with requests that cause broadcasts. The id is also
    available while a streaming response is produced. The middleware supports sync and async projects.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Handle a request. While it is handled, `current_socket_id` returns its header `X-Socket-ID`."""
        socket_id = request.headers.get(HEADER, "")
        if self.is_async:
            return self._acall(request, socket_id)
        with _as_current(socket_id):
            response = self.get_response(request)
        assert isinstance(response, HttpResponseBase)  # noqa: S101 - for the type checker
        return _wrap_stream(response, socket_id)

    async def _acall(self, request: HttpRequest, socket_id: str) -> HttpResponseBase:
        with _as_current(socket_id):
            response = await self.get_response(request)  # type: ignore[misc]
        return _wrap_stream(response, socket_id)


@contextmanager
def _as_current(socket_id: str) -> Iterator[None]:
    # ContextVar.reset would raise an error if the response is finished in another copy of the context.
    previous = _socket_id.get()
    _socket_id.set(socket_id)
    try:
        yield
    finally:
        _socket_id.set(previous)


def _wrap_stream(response: HttpResponseBase, socket_id: str) -> HttpResponseBase:
    """Set the socket id while each part of a streaming response is produced, after the middleware has returned."""
    # Files are not wrapped. They cause no broadcasts, and the server could not send a wrapped file efficiently.
    if socket_id and isinstance(response, StreamingHttpResponse) and getattr(response, "file_to_stream", None) is None:
        content = response.streaming_content
        response.streaming_content = (
            _parts(content, socket_id) if isinstance(content, Iterator) else _aparts(content, socket_id)
        )
    return response


def _parts(content: Iterator[bytes], socket_id: str) -> Iterator[bytes]:
    while True:
        with _as_current(socket_id):
            part = next(content, None)
        if part is None:
            return
        yield part


async def _aparts(content: AsyncIterator[bytes], socket_id: str) -> AsyncIterator[bytes]:
    iterator = aiter(content)
    while True:
        with _as_current(socket_id):
            part = await anext(iterator, None)
        if part is None:
            return
        yield part
