"""HTTP beside the cable: the package's own endpoints, signing in, and calls inside the server's process."""

from __future__ import annotations

import json

from django.contrib.auth import get_user_model, login, logout
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path

from tests.integration.project.calls import perform


def sign_in(request: HttpRequest) -> HttpResponse:
    """Make a user if need be, and give the client a session of theirs."""
    user, _ = get_user_model().objects.get_or_create(username=request.POST["username"])
    login(request, user)
    return JsonResponse({"id": user.pk})


def sign_out(request: HttpRequest) -> HttpResponse:
    """Log the client out, as Django's own view does."""
    logout(request)
    return HttpResponse()


def call(request: HttpRequest) -> HttpResponse:
    """Make a call inside this process."""
    return JsonResponse(perform(json.loads(request.body)))


urlpatterns = [
    path("sign-in", sign_in),
    path("sign-out", sign_out),
    path("call", call),
    path("", include("reliable_cable.urls")),
]
