"""The views of the pages. A page is rendered with the current data, and receives later updates over the cable."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from reliable_cable import broadcast, position
from reliable_cable.runs.models import Run

from . import background
from .assistant import stream_of
from .cable import ChatChannel, NewsChannel, html_stream, post_message
from .models import Conversation, Message, Room
from .robot import MAX_LINES, talk

#: The number of messages that the page of a room shows at first, and of answers on the page of a conversation.
PAGE_SIZE = 50
#: The maximum number of messages in one response to a page that could not catch up from the stream.
CATCH_UP_SIZE = 200

#: The topic, title and description of each box on the page "Coming from Action Cable". The script of the box is named
#: after the topic.
BOXES = (
    ("consumer", "createConsumer", "Rails' own way, from @anycable/web: change the import, keep the code."),
    ("classes", "A Channel class", "Params in, messages out: a class for each kind of subscription."),
    ("extended", "The extended protocol", "With one more option, no message is lost when a connection breaks."),
    ("signed", "A signed stream", "No channel class at all: the page holds a name that the server has signed."),
    ("public", "A public stream", "For what everybody may read: only streams that PUBLIC_STREAMS names."),
)


def _user(request: HttpRequest) -> User:
    """Return the user of a request. The view must have `login_required`."""
    if not isinstance(request.user, User):
        raise Http404
    return request.user


def _room(request: HttpRequest, slug: str) -> Room:
    return get_object_or_404(Room.objects.open_to(request.user), slug=slug)


@require_GET
@login_required
def rooms(request: HttpRequest) -> HttpResponse:
    """List the rooms that the user may enter."""
    return render(request, "chat/rooms.html", {"rooms": Room.objects.open_to(request.user)})


@require_GET
@login_required
def room(request: HttpRequest, slug: str) -> HttpResponse:
    """Show a room with its latest messages."""
    shown = _room(request, slug)
    # The position is read before the messages, so that no message is lost. The page is sent all messages after this
    # position.
    at = position(ChatChannel.broadcasting_for(shown))
    latest = shown.messages.select_related("author").order_by("-pk")[:PAGE_SIZE]
    context = {
        "room": shown,
        "rooms": Room.objects.open_to(request.user),
        "chat_messages": list(reversed(latest)),
        "at": at,
        "max_length": Message.MAX_LENGTH,
        "max_lines": MAX_LINES,
    }
    return render(request, "chat/room.html", context)


@require_GET
@login_required
def turbo_room(request: HttpRequest, slug: str) -> HttpResponse:
    """Show a public room with Turbo. The server also renders the HTML of later messages."""
    return render(request, "chat/turbo.html", _html_room(slug, "turbo"))


@require_GET
@login_required
def htmx_room(request: HttpRequest, slug: str, version: int) -> HttpResponse:
    """Show a public room with htmx, version 2 or 4. The page receives later messages as server-sent events."""
    return render(request, "chat/htmx.html", {**_html_room(slug, "htmx"), "version": version})


def _html_room(slug: str, kind: str) -> dict[str, Any]:
    """Return the template context of a room page with Turbo or htmx.

    Args:
        slug: the slug of the room.
        kind: the kind of the page, `"turbo"` or `"htmx"`, which names its stream.
    """
    shown = get_object_or_404(Room, slug=slug, is_private=False)
    at = position(html_stream(shown, kind))
    latest = shown.messages.select_related("author").order_by("-pk")[:PAGE_SIZE]
    return {
        "room": shown,
        "chat_messages": list(reversed(latest)),
        "count": shown.messages.count(),
        "at": at,
        "max_length": Message.MAX_LENGTH,
    }


@require_POST
@login_required
def say(request: HttpRequest, slug: str) -> HttpResponse:
    """Send the message in a submitted form to a room."""
    text = request.POST.get("text", "").strip()
    if not 0 < len(text) <= Message.MAX_LENGTH:
        return HttpResponse(f"`text` must have 1 to {Message.MAX_LENGTH} characters.", status=400)
    post_message(_room(request, slug), _user(request), text, client_id=uuid4().hex)
    return HttpResponse(status=204)


@require_GET
@login_required
def room_messages(request: HttpRequest, slug: str) -> JsonResponse:
    """Return the messages after an id, for a page that missed messages which the stream no longer stores."""
    try:
        after = int(request.GET.get("after", "0"))
    except ValueError:
        return JsonResponse({"error": "`after` must be the id of a message."}, status=400)
    later = list(_room(request, slug).messages.filter(pk__gt=after).select_related("author")[: CATCH_UP_SIZE + 1])
    more = len(later) > CATCH_UP_SIZE
    return JsonResponse({"messages": [message.as_dict() for message in later[:CATCH_UP_SIZE]], "more": more})


@require_POST
@login_required
def robot(request: HttpRequest, slug: str) -> HttpResponse:
    """Make the robot send `count` messages to the room, and wait `interval` milliseconds between two messages."""
    target = _room(request, slug)
    try:
        count, interval = int(request.POST.get("count", "10")), int(request.POST.get("interval", "0"))
    except ValueError:
        return HttpResponse("`count` and `interval` must be whole numbers.", status=400)
    if not (1 <= count <= MAX_LINES and 0 <= interval <= 1000):
        return HttpResponse(f"`count` must be 1 to {MAX_LINES}, `interval` 0 to 1000.", status=400)
    background.start(talk, target.pk, count, interval / 1000)
    return HttpResponse(status=202)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def assistant(request: HttpRequest, pk: int | None = None) -> HttpResponse:
    """Show a conversation with the assistant, by default the latest one. A POST redirects to an empty one."""
    conversations = _user(request).conversations.all()
    latest = conversations.first()
    if latest is None or (request.method == "POST" and latest.title):
        latest = conversations.create(user=_user(request))
    if request.method == "POST":
        return redirect(latest)
    shown = latest if pk is None else get_object_or_404(conversations, pk=pk)
    # The position is read before the runs, so that no run is lost.
    at = position(stream_of(shown))
    runs = Run.objects.about(shown).order_by("-created_at")[:PAGE_SIZE]
    context = {
        "conversation": shown,
        "conversations": conversations[:PAGE_SIZE],
        "runs": list(reversed(runs)),
        "at": at,
        "max_length": Conversation.MAX_PROMPT,
    }
    return render(request, "chat/assistant.html", context)


@require_GET
@login_required
def migrations(request: HttpRequest) -> HttpResponse:
    """Show examples for developers who know Action Cable. Each example displays the code that it runs."""
    boxes = [
        {"topic": topic, "title": title, "text": text, "code": _source(f"chat/migrations/{topic}.js")}
        for topic, title, text in BOXES
        if topic != "public" or getattr(settings, "RELIABLE_CABLE", {}).get("PUBLIC_STREAMS")
    ]
    context = {"boxes": boxes, "signed_name": "news:signed", "channel_code": inspect.getsource(NewsChannel)}
    return render(request, "chat/migrations.html", context)


@require_POST
@login_required
def migrations_broadcast(request: HttpRequest, topic: str) -> HttpResponse:
    """Broadcast to the stream of the box with a topic. If the topic is "all", broadcast to the streams of all boxes."""
    topics = [box[0] for box in BOXES]
    if topic not in [*topics, "all"]:
        raise Http404
    for name in topics if topic == "all" else [topic]:
        broadcast(f"news:{name}", {"text": f"Hello from {_user(request).username}", "at": timezone.now()})
    return HttpResponse(status=204)


def _source(name: str) -> str:
    path = finders.find(name)
    if not isinstance(path, str):
        raise Http404(name)
    return Path(path).read_text(encoding="utf-8")
