"""The views of the HTTP endpoints of runs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import wraps
from http import HTTPMethod, HTTPStatus
from typing import Any, Final, Self

from django.contrib.auth.decorators import login_not_required
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied, ValidationError
from django.core.handlers.asgi import ASGIRequest
from django.db import connections, models, router, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt

from reliable_cable.concurrency.threads import run_handler
from reliable_cable.consumer import get_hub
from reliable_cable.http.core import Refusal
from reliable_cable.namespaces import current_namespace, use_namespace
from reliable_cable.runs.access import permissions, readable_run, stoppable_run
from reliable_cable.runs.chats import RunChats, chats
from reliable_cable.runs.models import Run

from .reading import Interrupted, read_events
from .requests import ChatRequest, Visitor, authenticate, check_csrf, is_storable, read_chat_request
from .ui_messages import DONE, PING, UiMessages, encode

#: How long, in seconds, nothing is sent before a comment is sent, so that proxies keep the connection open.
SILENCE: Final = 15.0

#: The headers of a stream. Proxies and middlewares must neither store, delay nor compress it.
_STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-store, no-transform, private",
    "Content-Encoding": "identity",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
    "X-Vercel-AI-UI-Message-Stream": "v1",
}
_NO_CHAT: Final = "There is no such chat."
_NO_RUN: Final = "There is no such run."


def _endpoint(method: str, *, streams: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate an async function, which is called with the request, the visitor and the parts of the path.

    The view authenticates the user, and sends errors as JSON. It never runs in a transaction of `ATOMIC_REQUESTS`,
    which cannot surround an async view.

    Args:
        method: the method that the endpoint allows.
        streams: whether the response is a stream, which needs ASGI.
    """

    def decorate(function: Callable[..., Awaitable[HttpResponseBase]]) -> Callable[..., Any]:
        @wraps(function)
        async def view(request: HttpRequest, **parts: str) -> HttpResponseBase:
            try:
                response = await _respond(request, parts)
            except Refusal as refusal:
                refused = refusal.response()
                response = HttpResponse(refused.body, status=refused.status, headers=refused.headers)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        async def _respond(request: HttpRequest, parts: dict[str, str]) -> HttpResponseBase:
            if request.method != method:
                refusal = JsonResponse({"error": f"The method must be {method}."}, status=HTTPStatus.METHOD_NOT_ALLOWED)
                refusal.headers["Allow"] = method
                return refusal
            if streams and not isinstance(request, ASGIRequest):
                raise Refusal(
                    HTTPStatus.NOT_IMPLEMENTED,
                    "Answers can be streamed only by an ASGI server, such as daphne or uvicorn. This is WSGI.",
                )
            visitor = await authenticate(request)
            with use_namespace(visitor.namespace):
                if method == HTTPMethod.POST and not visitor.has_token:
                    await run_handler(check_csrf, request)
                return await function(request, visitor, **parts)

        for alias in connections:
            transaction.non_atomic_requests(using=alias)(view)
        return csrf_exempt(login_not_required(view))

    return decorate


# -- chats ------------------------------------------------------------------------------------------------------------


@_endpoint(HTTPMethod.POST, streams=True)
async def chat(request: HttpRequest, visitor: Visitor) -> HttpResponseBase:
    """Start a run that answers the last message of a chat, and stream the answer."""
    run = await run_handler(_start, request, visitor.user)
    return _stream(run, visitor)


@_endpoint(HTTPMethod.GET, streams=True)
async def chat_stream(request: HttpRequest, visitor: Visitor, chat: str) -> HttpResponseBase:
    """Stream the newest active run of a chat from its beginning. Without such a run, the status is 204."""
    run = await run_handler(_newest_active, visitor.user, chat)
    return HttpResponse(status=HTTPStatus.NO_CONTENT) if run is None else _stream(run, visitor)


@_endpoint(HTTPMethod.POST)
async def chat_stop(request: HttpRequest, visitor: Visitor, chat: str) -> HttpResponseBase:
    """Stop the active runs of a chat."""
    await run_handler(_stop_chat, visitor.user, chat)
    return HttpResponse(status=HTTPStatus.NO_CONTENT)


def _start(request: HttpRequest, user: Any) -> str:
    """Start a run for the message in a request. Return the id of the run."""
    asked = read_chat_request(request)
    project = chats()
    using = router.db_for_write(Run)
    run: Run | None = None
    try:
        with transaction.atomic(using=using):
            if connections[using].vendor == "sqlite":
                # SQLite has no row locks. An update takes the write lock, even if it changes no row.
                Run.objects.filter(pk=uuid.UUID(int=0)).update(attempt=1)
            subject = _subject(project, user, asked.chat)
            _refuse_if_active(subject)
            run = _start_about(project, user, subject, asked)
    except Exception:
        # The error may have come from an `on_commit` hook, which should have started the task.
        if run is not None and (stored := Run.objects.filter(pk=run.pk).first()) is not None:
            stored.stop()
        raise
    return str(run.pk)


def _start_about(project: RunChats, user: Any, subject: models.Model, asked: ChatRequest) -> Run:
    try:
        run = project.start(user, subject, asked.message)
    except ValidationError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, " ".join(error.messages)) from None
    except (ObjectDoesNotExist, PermissionDenied):
        raise Refusal(HTTPStatus.NOT_FOUND, _NO_CHAT) from None
    type_ = ContentType.objects.get_for_model(subject)
    if not isinstance(run, Run) or (run.subject_type_id, str(run.subject_id)) != (type_.pk, str(subject.pk)):
        raise TypeError(
            f"{type(project).__qualname__}.start() must return a run about its subject: "
            "Run.objects.start(owner=user, subject=subject, …)."
        )
    return run


def _subject(project: RunChats, user: Any, chat: str) -> models.Model:
    """Return the object that a chat is about.

    Raises:
        Refusal: the user has no such chat.
    """
    try:
        if not is_storable(chat) or (project.login_required and not user.is_authenticated):
            raise ObjectDoesNotExist
        return project.subject(user, chat)
    except (ObjectDoesNotExist, PermissionDenied, ValidationError, ValueError):
        raise Refusal(HTTPStatus.NOT_FOUND, _NO_CHAT) from None


def _refuse_if_active(subject: models.Model) -> None:
    """Lock the subject, so that no other request starts a run at the same time.

    Raises:
        Refusal: the subject has an active run, which nobody has stopped.
    """
    list(type(subject)._base_manager.select_for_update().filter(pk=subject.pk).values_list("pk"))
    # A run that is being stopped does not count. Its task may notice that late.
    for run in Run.objects.about(subject).active().filter(stop_requested=False):
        if not run.fail_if_abandoned():
            raise Refusal(
                HTTPStatus.CONFLICT,
                "The chat already has an answer in progress. Wait until it ends, or stop it.",
                run=str(run.pk),
            )


def _newest_active(user: Any, chat: str) -> str | None:
    return next((str(run.pk) for run in _active_runs(user, chat)), None)


def _active_runs(user: Any, chat: str) -> Iterator[Run]:
    """Yield the active runs of a chat that a user may read, the newest first."""
    subject = _subject(chats(), user, chat)
    allowed, namespace = permissions(), current_namespace()
    for run in Run.objects.about(subject).active().filter(namespace=namespace).order_by("-created_at"):
        if allowed.may_read(user, run):
            yield run


def _stop_chat(user: Any, chat: str) -> None:
    runs = list(_active_runs(user, chat))
    stoppable = [run for run in runs if permissions().may_stop(user, run)]
    if runs and not stoppable:
        raise Refusal(HTTPStatus.NOT_FOUND, _NO_RUN)
    for run in stoppable:
        run.stop()


# -- runs -------------------------------------------------------------------------------------------------------------


@_endpoint(HTTPMethod.GET)
async def run(request: HttpRequest, visitor: Visitor, run: str) -> HttpResponseBase:
    """Return a run as JSON, as it was last saved."""
    return JsonResponse(await run_handler(_describe, run, visitor.user))


@_endpoint(HTTPMethod.POST)
async def run_stop(request: HttpRequest, visitor: Visitor, run: str) -> HttpResponseBase:
    """Stop a run."""
    await run_handler(_stop, run, visitor.user)
    return HttpResponse(status=HTTPStatus.NO_CONTENT)


def _describe(run: str, user: Any) -> dict[str, Any]:
    try:
        found = readable_run(run, user)
    except Run.DoesNotExist:
        raise Refusal(HTTPStatus.NOT_FOUND, _NO_RUN) from None
    snapshot = found.snapshot()
    del snapshot["event"]
    return {"id": str(found.pk), **snapshot}


def _stop(run: str, user: Any) -> None:
    try:
        stoppable_run(run, user).stop()
    except Run.DoesNotExist:
        raise Refusal(HTTPStatus.NOT_FOUND, _NO_RUN) from None


# -- streams ----------------------------------------------------------------------------------------------------------


def _stream(run: str, visitor: Visitor) -> HttpResponseBase:
    return StreamingHttpResponse(_Body(_parts(run, visitor)), headers=_STREAM_HEADERS)


class _Body:
    """The body of a response that streams a run. Django calls `close` after the last part, or when the client has left.

    Nothing is opened before Django asks for the first part. So nothing is left behind if a middleware replaces the
    response.

    Args:
        parts: yields the parts of the body.
    """

    def __init__(self, parts: AsyncGenerator[bytes, None]) -> None:
        self._parts = parts
        #: The event loop in which the parts are read, until the last part was read.
        self._loop: asyncio.AbstractEventLoop | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._loop = asyncio.get_running_loop()
        try:
            return await anext(self._parts)
        except BaseException:
            self._loop = None  # the generator has ended
            raise

    def close(self) -> None:
        """Close the generator, which has not ended if the client has left. Django calls this in a thread."""
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        get_hub().tasks.spawn(self._parts.aclose())


async def _parts(run: str, visitor: Visitor) -> AsyncGenerator[bytes, None]:
    """Yield the parts of the body of a response that streams a run."""
    messages = UiMessages(run)
    yield encode(messages.start())
    try:
        async with aclosing(read_events(run, visitor.scope, SILENCE)) as events:
            async for event in events:
                if event is None:
                    yield PING
                elif chunks := messages.translate(event):
                    yield encode(chunks)
                if messages.ended:
                    break
    except Interrupted as interruption:
        yield encode(messages.fail(str(interruption)))
    yield DONE
