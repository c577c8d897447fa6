"""Two ways to call the HTTP endpoints: Django's views through the test client, and `CableHTTP` through ASGI."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from django.test import Client

from reliable_cable.http import CableHTTP

Message = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A response. The names of its headers are in lower case."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    def __getitem__(self, name: str) -> str:
        return self.headers[name.lower()]

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.content)


class Front(ABC):
    """A way to call the HTTP endpoints."""

    @abstractmethod
    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Make a request.

        Args:
            method: the method.
            path: the percent-encoded path.
            body: the body.
            headers: the headers, except for the length of the body.
        """

    def post(self, body: Any, path: str, key: str) -> Answer:
        """Post bytes or a string as they are, or another value as JSON, with an API key."""
        content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        return self.request("POST", path, content, {"Authorization": f"Bearer {key}"})

    def get(self, path: str, key: str) -> Answer:
        """Get a path with an API key."""
        return self.request("GET", path, b"", {"Authorization": f"Bearer {key}"})


class DjangoFront(Front):
    """The views of `reliable_cable.urls`."""

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Make a request with the test client."""
        client: Any = Client(enforce_csrf_checks=True)
        response = client.generic(method, path, body, "application/json", headers=headers or {})
        return Answer(response.status_code, {name.lower(): value for name, value in response.items()}, response.content)


@dataclass
class Receiver:
    """The ASGI `receive` of a request.

    Args:
        messages: the messages to be received. Calls after the last message do not return.
    """

    messages: list[Message]
    #: How many messages were received.
    received: int = 0

    async def __call__(self) -> Message:
        """Return the next message."""
        if not self.messages:
            await asyncio.Event().wait()
        self.received += 1
        return self.messages.pop(0)


async def elsewhere(scope: Message, receive: Any, send: Any) -> None:
    """Take the place of the project's application: answer 404 to each request that `CableHTTP` passes on."""
    await send({"type": "http.response.start", "status": 404, "headers": [(b"x-from", b"elsewhere")]})
    await send({"type": "http.response.body", "body": b""})


def make_scope(method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = (), **more: Any) -> Message:
    """Return the scope of a request for a percent-encoded path."""
    return {
        "type": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        **more,
    }


def body_messages(body: bytes, size: int = 1024) -> list[Message]:
    """Return the ASGI messages of a request's body, with parts of at most `size` bytes."""
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    return messages


async def call(application: Any, scope: Message, receive: Receiver) -> Answer | None:
    """Call an ASGI application. Return its response; None if it sent none."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await application(scope, receive, send)
    if not sent:
        return None
    start, *bodies = sent
    assert start["type"] == "http.response.start"
    assert [message["type"] for message in bodies] == ["http.response.body"]
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], headers, bodies[0]["body"])


@dataclass
class ASGIFront(Front):
    """An ASGI application, called as a server calls it.

    Args:
        application: the application.
        chunked: whether requests have no `Content-Length`.
    """

    application: Any = field(default_factory=lambda: CableHTTP(elsewhere))
    chunked: bool = False

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Call the application on a new event loop."""
        encoded = [(name.lower().encode(), _encode(value)) for name, value in (headers or {}).items()]
        if not self.chunked:
            encoded.append((b"content-length", str(len(body)).encode()))
        answer = asyncio.run(call(self.application, make_scope(method, path, encoded), Receiver(body_messages(body))))
        assert answer is not None
        return answer


def _encode(value: str) -> bytes:
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode()
