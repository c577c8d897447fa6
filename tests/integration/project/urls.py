"""The URLs of the package, and of views for tests: logins, calls inside the server process, and a page with a chat."""

from __future__ import annotations

import json
import os
from pathlib import Path

from django.contrib.auth import get_user_model, login, logout, update_session_auth_hash
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.utils.html import json_script
from django.views.decorators.csrf import ensure_csrf_cookie

from tests.integration.project.calls import perform
from tests.integration.project.runs import messages_of


def sign_in(request: HttpRequest) -> HttpResponse:
    """Log in a user, creating the user if necessary. The session expires after `expiry` seconds, if that is given."""
    user, _ = get_user_model().objects.get_or_create(username=request.POST["username"])
    login(request, user)
    if "expiry" in request.POST:
        request.session.set_expiry(int(request.POST["expiry"]))
    return JsonResponse({"id": user.pk})


def sign_out(request: HttpRequest) -> HttpResponse:
    """Log the user out, as Django's own view does."""
    logout(request)
    return HttpResponse()


def change_password(request: HttpRequest) -> HttpResponse:
    """Change the user's password, and keep the user logged in, as Django's own view does."""
    user = request.user
    assert user.is_authenticated
    user.set_password("new")
    user.save()
    update_session_auth_hash(request, user)
    return HttpResponse()


def call(request: HttpRequest) -> HttpResponse:
    """Make the call that the request names, in this process."""
    return JsonResponse(perform(json.loads(request.body)))


@ensure_csrf_cookie
def chat_page(request: HttpRequest, chat: str) -> HttpResponse:
    """Return a page whose script (tests/node/chat_page.mjs) uses `useChat`."""
    data = {"id": chat, "messages": messages_of(chat)}
    script = '<script src="/chat-page.js" defer></script>'
    icon = '<link rel="icon" href="data:,">'
    return HttpResponse(f"<!doctype html>{icon}{json_script(data, 'chat')}<div id=root></div>{script}")


def chat_script(request: HttpRequest) -> HttpResponse:
    """Return the script of the page."""
    return HttpResponse(Path(os.environ["CABLE_TEST_CHAT_PAGE"]).read_bytes(), content_type="text/javascript")


urlpatterns = [
    path("runs/", include("reliable_cable.runs.urls")),
    path("chat-page/<str:chat>", chat_page),
    path("chat-page.js", chat_script),
    path("sign-in", sign_in),
    path("sign-out", sign_out),
    path("change-password", change_password),
    path("call", call),
    path("", include("reliable_cable.urls")),
]
