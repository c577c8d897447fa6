"""The views for clients that speak AG-UI: start a run, or read the newest one."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPMethod
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from reliable_cable.concurrency.threads import run_handler
from reliable_cable.runs.chats import ChatMessage
from reliable_cable.runs.models import Run

from .ag_ui import AgUiEvents, is_of_run
from .endpoints import endpoint
from .requests import ChatRequest, Visitor, invalid, join_texts, objects_in, parse_object, read_body, text_of
from .starting import readable_runs, start_run
from .streaming import STREAM_HEADERS, stream
from .translating import Message

#: The roles whose messages start a run. If the page runs a tool, it sends the result as a message with the role `tool`.
_ASKING: Final = ("user", "tool")


@dataclass(frozen=True, slots=True)
class RunInput:
    """A parsed request, which AG-UI calls `RunAgentInput`.

    Args:
        thread: the id of the thread, which is the id of a chat.
        messages: the messages that the client has. Each has an `id` and a `role`.
        body: the other keys of the request.
    """

    thread: str
    messages: list[Message] = field(repr=False)
    body: dict[str, Any] = field(repr=False)


@endpoint(HTTPMethod.POST, streams=True)
async def run(request: HttpRequest, visitor: Visitor) -> HttpResponseBase:
    """Start a run that answers the last message of a thread, and stream it.

    If the last message is a part of the newest run, the client has lost its connection. The run is streamed again.
    """
    return _stream(visitor, await run_handler(_run, request, visitor.user))


@endpoint(HTTPMethod.POST, streams=True)
async def connect(request: HttpRequest, visitor: Visitor) -> HttpResponseBase:
    """Stream the newest run of a thread, without starting one. The response is empty if there is nothing to read."""
    found = await run_handler(_connect, request, visitor.user)
    return HttpResponse(headers=STREAM_HEADERS) if found is None else _stream(visitor, found)


def _stream(visitor: Visitor, events: tuple[str, AgUiEvents]) -> HttpResponseBase:
    run, translator = events
    return stream(run, visitor, translator)


def _run(request: HttpRequest, user: Any) -> tuple[str, AgUiEvents]:
    asked = _read(request)
    last = asked.messages[-1] if asked.messages else None
    if last is not None and last["role"] != "user":
        newest = next(readable_runs(user, asked.thread), None)
        if newest is not None and is_of_run(last, str(newest.pk)):
            return _read_again(newest, asked)
    if last is None or last["role"] not in _ASKING:
        raise invalid("The last message must be one of the user, or the result of a tool.")
    run = start_run(user, ChatRequest(asked.thread, _message(last, asked.body)))
    return run, AgUiEvents(run, asked.thread)


def _connect(request: HttpRequest, user: Any) -> tuple[str, AgUiEvents] | None:
    asked = _read(request)
    newest = next(readable_runs(user, asked.thread), None)
    if newest is None or (newest.ended and not _waits_for(newest, asked)):
        return None
    return _read_again(newest, asked)


def _waits_for(run: Run, asked: RunInput) -> bool:
    """Return whether a client may lack a part of the answer of an ended run.

    This is so if the client has no messages, or if its last message is a user's message or a part of this answer.
    """
    if not asked.messages:
        return True
    last = asked.messages[-1]
    return last["role"] == "user" or is_of_run(last, str(run.pk))


def _read_again(run: Run, asked: RunInput) -> tuple[str, AgUiEvents]:
    return str(run.pk), AgUiEvents(str(run.pk), asked.thread, asked.messages)


# -- the body ---------------------------------------------------------------------------------------------------------


def _read(request: HttpRequest) -> RunInput:
    return parse_run_input(read_body(request, "Raise the limit, or let the agent forget old messages."))


def parse_run_input(body: bytes) -> RunInput:
    """Parse a request body in the format of `HttpAgent`. Keys that this package does not use may have any value.

    Raises:
        Refusal: the body is not valid.
    """
    values = parse_object(body, "'threadId' and 'messages'")
    thread = text_of(values.pop("threadId", None), "threadId")
    if not thread:
        raise invalid("The key 'threadId' must be the id of the thread.")
    messages = objects_in(values.pop("messages", None), "The key 'messages' must be a list of objects.")
    for message in messages:
        if not text_of(message.get("id"), "id") or not text_of(message.get("role"), "role"):
            raise invalid("A message must have the keys 'id' and 'role'.")
    return RunInput(thread, messages, values)


def _message(message: Message, body: dict[str, Any]) -> ChatMessage:
    content = message.get("content")
    parts = objects_in(
        [{"type": "text", "text": content}] if isinstance(content, str) else content,
        "The key 'content' of the last message must be a string or a list of objects.",
    )
    call = {"toolCallId": message["toolCallId"]} if "toolCallId" in message else {}
    return ChatMessage(
        id=message["id"], role=message["role"], text=join_texts(parts), parts=parts, body={**body, **call}
    )
