"""The rules for the durable streams of a project, and a client of these streams."""

from __future__ import annotations

import asyncio
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.test import AsyncClient

from reliable_cable.runs.durable.access import DurableStreams
from reliable_cable.runs.durable_models import DurableStream
from reliable_cable.stores.engine import get_engine

TEXT: dict[str, Any] = {"content_type": "text/plain"}
JSON: dict[str, Any] = {"content_type": "application/json"}
POLICY = {"durable": True, "history_size": 100, "history_ttl": 3600}


class Rules(DurableStreams):
    """Users may create streams whose names begin with their usernames.

    Everybody may read a stream whose name contains "open".
    """

    max_streams = 3
    long_poll_time = 0.05

    def may_create(self, user: Any, name: str) -> bool:
        return name.startswith(user.get_username())

    def may_read(self, user: Any, stream: DurableStream) -> bool:
        return "open" in stream.name or super().may_read(user, stream)

    def may_write(self, user: Any, stream: DurableStream) -> bool:
        return super().may_read(user, stream)


class Guests(Rules):
    """Rules that need no login, and allow everybody to create streams."""

    login_required = False

    def may_create(self, user: Any, name: str) -> bool:
        return True


def change(settings: Any, **values: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, **values}


async def log_in(name: str) -> AsyncClient:
    browser = AsyncClient()
    await browser.aforce_login(await User.objects.acreate(username=name))
    return browser


def path(name: str = "ann/1", offset: str = "", live: str = "") -> str:
    query = "&".join(f"{key}={value}" for key, value in (("offset", offset), ("live", live)) if value)
    return f"/runs/durable/{name}?{query}"


async def create(browser: AsyncClient, name: str = "ann/1", body: str = "a", **options: Any) -> Any:
    return await browser.put(path(name), body, **{**TEXT, **options})


async def append(browser: AsyncClient, name: str = "ann/1", body: str = "b", **options: Any) -> Any:
    return await browser.post(path(name), body, **{**TEXT, **options})


async def row() -> DurableStream:
    return await DurableStream.objects.aget()


async def in_store(call: str, **values: Any) -> Any:
    stream = (await row()).stream
    return await sync_to_async(getattr(get_engine().streams, call))(stream, **values)


class Events:
    """Reads the response to a request with `live=sse`."""

    def __init__(self, response: Any) -> None:
        assert response.status_code == 200, response.content
        self._response = response
        self._parts = aiter(response)

    async def next(self) -> list[str]:
        async with asyncio.timeout(20):
            part: bytes = await anext(self._parts)
        return part.decode().removesuffix("\n\n").split("\n\n")

    async def ended(self) -> bool:
        async with asyncio.timeout(20):
            return await anext(self._parts, None) is None

    async def close(self) -> None:
        await self._parts.aclose()
        await sync_to_async(self._response.close)()
