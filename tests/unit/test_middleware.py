"""`SocketIdMiddleware` works in sync and async projects, and with streaming responses."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, AsyncRequestFactory, Client, RequestFactory, override_settings
from django.urls import path

from reliable_cable.middleware import SocketIdMiddleware, current_socket_id


def sync_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(current_socket_id())


async def async_view(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    return HttpResponse(current_socket_id())


def failing_view(request: HttpRequest) -> HttpResponse:
    raise ValueError(current_socket_id())


def streaming_view(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[str]:
        for _ in range(2):
            yield f"[{current_socket_id()}]"

    return StreamingHttpResponse(parts())


async def async_streaming_view(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        for _ in range(2):
            await asyncio.sleep(0)
            yield f"[{current_socket_id()}]"

    return StreamingHttpResponse(parts())


urlpatterns = [
    path("sync", sync_view),
    path("async", async_view),
    path("failing", failing_view),
    path("streaming", streaming_view),
    path("async-streaming", async_streaming_view),
]


def respond(view: Callable[[HttpRequest], HttpResponseBase], **headers: str) -> Any:
    return SocketIdMiddleware(view)(RequestFactory().get("/", headers=headers))


def test_there_is_no_id_outside_of_a_request() -> None:
    assert current_socket_id() == ""


class TestInAProject:
    @pytest.fixture(autouse=True)
    def project(self) -> Iterator[None]:
        middleware = ["reliable_cable.middleware.SocketIdMiddleware"]
        with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=middleware):
            yield

    @pytest.mark.parametrize("url", ["/sync", "/async"])
    def test_a_view_under_wsgi_knows_the_id(self, client: Client, url: str) -> None:
        assert client.get(url, headers={"X-Socket-ID": "abc"}).content == b"abc"
        assert client.get(url).content == b""

    @pytest.mark.parametrize("url", ["/sync", "/async"])
    async def test_a_view_under_asgi_knows_the_id(self, async_client: AsyncClient, url: str) -> None:
        assert (await async_client.get(url, headers={"X-Socket-ID": "abc"})).content == b"abc"
        assert (await async_client.get(url)).content == b""

    async def test_concurrent_requests_have_their_own_ids(self, async_client: AsyncClient) -> None:
        responses = await asyncio.gather(
            *(async_client.get("/async", headers={"X-Socket-ID": str(number)}) for number in range(10))
        )
        assert [response.content for response in responses] == [str(number).encode() for number in range(10)]

    def test_a_streaming_response_knows_the_id(self, client: Client) -> None:
        response: Any = client.get("/streaming", headers={"X-Socket-ID": "abc"})
        assert response.getvalue() == b"[abc][abc]"

    async def test_an_async_streaming_response_knows_the_id(self, async_client: AsyncClient) -> None:
        response: Any = await async_client.get("/async-streaming", headers={"X-Socket-ID": "abc"})
        assert b"".join([part async for part in response]) == b"[abc][abc]"
        assert current_socket_id() == ""


class TestAfterTheRequest:
    def test_the_id_is_removed_after_a_request(self) -> None:
        assert respond(sync_view, X_Socket_ID="abc").content == b"abc"
        assert current_socket_id() == ""

    def test_the_id_is_removed_after_an_error(self) -> None:
        with pytest.raises(ValueError, match="abc"):
            respond(failing_view, X_Socket_ID="abc")
        assert current_socket_id() == ""

    async def test_the_id_is_removed_after_an_async_request(self) -> None:
        request = AsyncRequestFactory().get("/", headers={"X-Socket-ID": "abc"})
        response: Any = await SocketIdMiddleware(async_view)(request)  # type: ignore[misc]
        assert response.content == b"abc"
        assert current_socket_id() == ""

    def test_the_id_is_unknown_between_the_parts_of_a_stream(self) -> None:
        parts = iter(respond(streaming_view, X_Socket_ID="abc"))
        assert next(parts) == b"[abc]"
        assert current_socket_id() == ""
        assert respond(sync_view, X_Socket_ID="other").content == b"other"
        assert next(parts) == b"[abc]"
        assert list(parts) == []

    def test_closing_a_stream_closes_its_generator(self) -> None:
        closed: list[bool] = []

        def parts() -> Iterator[bytes]:
            try:
                yield b"a"
                yield b"b"
            finally:
                closed.append(True)

        response = respond(lambda request: StreamingHttpResponse(parts()), X_Socket_ID="abc")
        assert next(iter(response)) == b"a"
        response.close()
        assert closed == [True]


class TestLeftAlone:
    def test_a_stream_without_the_header_is_not_wrapped(self) -> None:
        content = iter([b"a"])
        response = StreamingHttpResponse(content)
        assert respond(lambda request: response)._iterator is content

    def test_a_file_response_is_not_wrapped(self) -> None:
        file = io.BytesIO(b"content")
        response = respond(lambda request: FileResponse(file), X_Socket_ID="abc")
        assert response.file_to_stream is file
        assert response.getvalue() == b"content"


def test_the_middleware_is_async_if_the_project_is() -> None:
    assert iscoroutinefunction(SocketIdMiddleware(async_view))
    assert not iscoroutinefunction(SocketIdMiddleware(sync_view))
    assert SocketIdMiddleware.sync_capable
    assert SocketIdMiddleware.async_capable
