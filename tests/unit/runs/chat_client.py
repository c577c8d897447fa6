"""Chats of a project, and a client of their HTTP endpoints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import models
from django.http import Http404
from django.shortcuts import get_object_or_404
from django.test import AsyncClient
from django.urls import include, path

from reliable_cable.consumer import get_hub
from reliable_cable.runs.access import RunPermissions
from reliable_cable.runs.chats import ChatMessage, RunChats
from reliable_cable.runs.models import Run
from reliable_cable.runs.writing import awriting

urlpatterns = [path("runs/", include("reliable_cable.runs.urls"))]

QUESTION = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "why?"}]}


class Chats(RunChats):
    """The chats are groups. The name of a group is the username of its only member, a slash and a number."""

    def subject(self, user: Any, chat: str) -> models.Model:
        group = get_object_or_404(Group, name=chat)
        if chat.partition("/")[0] != user.get_username():
            raise PermissionDenied
        return group

    def start(self, user: Any, subject: models.Model, message: ChatMessage) -> Run:
        match message.text:
            case "refuse":
                raise ValidationError("Ask something else.")
            case "forbid":
                raise PermissionDenied
            case "hide":
                raise Http404
            case "other":
                return Run.objects.start(owner=user)
            case "nobody":
                return Run.objects.start(subject=subject)
        return Run.objects.start(owner=user, subject=subject, input={"prompt": message.text})


tenant: ContextVar[str] = ContextVar("tenant", default="")


def namespace(scope: Any = None) -> str:
    return tenant.get()


def sync_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Pass all requests on unchanged. This function takes the place of a sync middleware of the project."""
    return lambda request: get_response(request)


class Readable(RunPermissions):
    """Permissions by which everybody may read a run, and nobody may stop it."""

    def may_read(self, user: Any, run: Run) -> bool:
        return True

    def may_stop(self, user: Any, run: Run) -> bool:
        return False


def body(chat: str = "ann/1", text: str = "why?", **values: Any) -> dict[str, Any]:
    message = {**QUESTION, "parts": [{"type": "text", "text": text}]}
    return {"id": chat, "messages": [message], "trigger": "submit-message", **values}


async def post(client: AsyncClient, path: str = "/runs/chat", data: Any = None, **options: Any) -> Any:
    return await client.post(path, body() if data is None else data, content_type="application/json", **options)


async def get(client: AsyncClient, path: str, **options: Any) -> Any:
    return await client.get(path, **options)


class Reader:
    """Reads a streaming response, and collects its chunks."""

    #: Whether the protocol marks the end of the response, by `[DONE]`.
    has_mark = True

    def __init__(self, response: Any) -> None:
        assert response.status_code == 200, response.content
        self._response = response
        self._parts = aiter(response)
        self.chunks: list[dict[str, Any]] = []
        self.pings = 0
        self.done = False

    @property
    def text(self) -> str:
        return "".join(chunk["delta"] for chunk in self.chunks if chunk["type"] == "text-delta")

    async def read(self, until: str | None = None) -> None:
        """Read until the text equals `until`, or to the end of the response if `until` is None."""
        async with asyncio.timeout(20):
            while until is None or self.text != until:
                try:
                    part = await anext(self._parts)
                except StopAsyncIteration:
                    assert until is None
                    assert self.done or not self.has_mark
                    return
                for event in part.decode().removesuffix("\n\n").split("\n\n"):
                    self.pings += event == ": ping"
                    self.done = event == "data: [DONE]"
                    if event.startswith("data: {"):
                        self.chunks.append(json.loads(event.removeprefix("data: ")))

    async def close(self) -> None:
        """Close the response, as Django does when the client has disconnected."""
        await self._parts.aclose()
        await sync_to_async(self._response.close)()


def chat_settings() -> dict[str, Any]:
    return {"ENGINE": "memory", "RUN_CHATS": f"{__name__}.Chats"}


@asynccontextmanager
async def written(run: Run) -> AsyncIterator[Any]:
    async with awriting(run.pk) as out:
        yield out


@asynccontextmanager
async def begun(run: Run, reader: Reader, text: str = "a") -> AsyncIterator[Any]:
    """Write a run during a block. The block begins when a reader has read the first text."""
    async with written(run) as out:
        out.write(text)
        await reader.read(until=text)
        yield out


async def is_left() -> None:
    """Wait until no connection and no task of a reader of a run is left."""
    hub = get_hub()
    async with asyncio.timeout(10):
        while hub.connections.all() or any("RunConsumer" in repr(task) for task in asyncio.all_tasks()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def only_run() -> Run:
    return await Run.objects.aget()
