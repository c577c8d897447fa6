"""The views of the HTTP endpoints of runs."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPMethod, HTTPStatus
from typing import Any, Final

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase

from reliable_cable.concurrency.threads import run_handler
from reliable_cable.http.core import Refusal
from reliable_cable.runs.access import permissions, readable_run, stoppable_run
from reliable_cable.runs.models import Run

from .endpoints import endpoint
from .requests import Visitor, read_chat_request
from .starting import active_runs, readable_runs, start_run
from .streaming import stream
from .ui_messages import DONE, UiMessages

_HEADERS: Final = {"X-Vercel-AI-UI-Message-Stream": "v1"}
_NO_RUN: Final = "There is no such run."


# -- chats ------------------------------------------------------------------------------------------------------------


@endpoint(HTTPMethod.POST, streams=True)
async def chat(request: HttpRequest, visitor: Visitor) -> HttpResponseBase:
    """Start a run that answers the last message of a chat, and stream the answer."""
    run = await run_handler(_start, request, visitor.user)
    return _stream(run, visitor)


@endpoint(HTTPMethod.GET, streams=True)
async def chat_stream(request: HttpRequest, visitor: Visitor, chat: str) -> HttpResponseBase:
    """Stream the newest active run of a chat from its beginning. Without such a run, the status is 204.

    With `ended` in the query string, stream the newest run, even if it has ended.
    """
    run = await run_handler(_newest, visitor.user, chat, "ended" in request.GET)
    return HttpResponse(status=HTTPStatus.NO_CONTENT) if run is None else _stream(run, visitor)


@endpoint(HTTPMethod.POST)
async def chat_stop(request: HttpRequest, visitor: Visitor, chat: str) -> HttpResponseBase:
    """Stop the active runs of a chat that the user may stop.

    If there are active runs, but the user may stop none of them, the status is 404.
    """
    await run_handler(_stop_chat, visitor.user, chat)
    return HttpResponse(status=HTTPStatus.NO_CONTENT)


def _start(request: HttpRequest, user: Any) -> str:
    return start_run(user, read_chat_request(request))


def _newest(user: Any, chat: str, ended: bool) -> str | None:
    find = readable_runs if ended else active_runs
    return next((str(run.pk) for run in find(user, chat)), None)


def _stop_chat(user: Any, chat: str) -> None:
    allowed = permissions()
    runs = list(active_runs(user, chat))
    stoppable = [run for run in runs if allowed.may_stop(user, run)]
    if runs and not stoppable:
        raise Refusal(HTTPStatus.NOT_FOUND, _NO_RUN)
    for run in stoppable:
        run.stop()


# -- runs -------------------------------------------------------------------------------------------------------------


@endpoint(HTTPMethod.GET)
async def run(request: HttpRequest, visitor: Visitor, run: str) -> HttpResponseBase:
    """Return a run as JSON, as it was last saved."""
    return JsonResponse(await run_handler(_describe, run, visitor.user))


@endpoint(HTTPMethod.POST)
async def run_stop(request: HttpRequest, visitor: Visitor, run: str) -> HttpResponseBase:
    """Stop a run. A run that has already ended stays unchanged."""
    await run_handler(_stop, run, visitor.user)
    return HttpResponse(status=HTTPStatus.NO_CONTENT)


def _describe(run: str, user: Any) -> dict[str, Any]:
    found = _find(readable_run, run, user)
    snapshot = found.snapshot()
    del snapshot["event"]
    return {"id": str(found.pk), **snapshot}


def _stop(run: str, user: Any) -> None:
    _find(stoppable_run, run, user).stop()


def _find(find: Callable[[str, Any], Run], run: str, user: Any) -> Run:
    """Call `readable_run` or `stoppable_run`, and refuse the request if there is no such run."""
    try:
        return find(run, user)
    except Run.DoesNotExist:
        raise Refusal(HTTPStatus.NOT_FOUND, _NO_RUN) from None


def _stream(run: str, visitor: Visitor) -> HttpResponseBase:
    return stream(run, visitor, UiMessages(run), headers=_HEADERS, last=DONE)
