"""URLs: the HTTP endpoints of the package, logging in and out, and calls inside the server process."""

from __future__ import annotations

import json

from django.contrib.auth import get_user_model, login, logout, update_session_auth_hash
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path

from tests.integration.project.calls import perform


def sign_in(request: HttpRequest) -> HttpResponse:
    """Log in a user, creating the user if necessary. The session expires after `expiry` seconds, if that is given."""
    user, _ = get_user_model().objects.get_or_create(username=request.POST["username"])
    login(request, user)
    if "expiry" in request.POST:
        request.session.set_expiry(int(request.POST["expiry"]))
    return JsonResponse({"id": user.pk})


def sign_out(request: HttpRequest) -> HttpResponse:
    """Log the user out, as the view of Django does."""
    logout(request)
    return HttpResponse()


def change_password(request: HttpRequest) -> HttpResponse:
    """Give the user another password, and keep the user logged in, as the view of Django does."""
    user = request.user
    assert user.is_authenticated
    user.set_password("new")
    user.save()
    update_session_auth_hash(request, user)
    return HttpResponse()


def call(request: HttpRequest) -> HttpResponse:
    """Make the call that the request names, in this process."""
    return JsonResponse(perform(json.loads(request.body)))


urlpatterns = [
    path("sign-in", sign_in),
    path("sign-out", sign_out),
    path("change-password", change_password),
    path("call", call),
    path("", include("reliable_cable.urls")),
]
