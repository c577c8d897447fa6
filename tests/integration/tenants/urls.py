"""The views of the project."""

from __future__ import annotations

from django.contrib.auth import get_user_model, logout
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from reliable_cable import presence_for, revoke
from tests.integration.tenants.cable import TenantChannel


def say(request: HttpRequest) -> HttpResponse:
    """Broadcast to user 1 of the tenant."""
    TenantChannel.broadcast_to(get_user_model().objects.get(pk=1), request.POST["text"])
    return HttpResponse()


def members(request: HttpRequest) -> HttpResponse:
    """Return the members of the stream of user 1 of the tenant."""
    stream = TenantChannel.broadcasting_for(get_user_model().objects.get(pk=1))
    return JsonResponse(presence_for(stream).info().records or {})


def end(request: HttpRequest) -> HttpResponse:
    """End all subscriptions to the stream of user 1 of the tenant."""
    revoke(stream=TenantChannel.broadcasting_for(get_user_model().objects.get(pk=1)))
    return HttpResponse()


def sign_out(request: HttpRequest) -> HttpResponse:
    """Log the user out."""
    logout(request)
    return HttpResponse()


def change_password(request: HttpRequest) -> HttpResponse:
    """Give the user another password, which ends all logins of the user."""
    assert request.user.is_authenticated
    request.user.set_password("new")
    request.user.save()
    return HttpResponse()


urlpatterns = [
    path("say", say),
    path("members", members),
    path("revoke", end),
    path("sign-out", sign_out),
    path("change-password", change_password),
]
