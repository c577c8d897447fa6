"""The URLs of the demo."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.urls import path

from demo_project.chat import views
from demo_project.chat.accounts import DEMO_USERS

#: Additional template context of the login page, with which a visitor can log in as any user with one click.
OPEN_ACCOUNTS = {"demo_users": DEMO_USERS, "demo_password": settings.DEMO_PASSWORD}

urlpatterns = [
    path("", views.rooms, name="rooms"),
    path("rooms/<slug:slug>/", views.room, name="room"),
    path("rooms/<slug:slug>/turbo/", views.turbo_room, name="turbo_room"),
    path("rooms/<slug:slug>/htmx/", views.htmx_room, {"version": 2}, name="htmx_room"),
    path("rooms/<slug:slug>/htmx4/", views.htmx_room, {"version": 4}, name="htmx4_room"),
    path("rooms/<slug:slug>/say/", views.say, name="say"),
    path("rooms/<slug:slug>/messages/", views.room_messages, name="room_messages"),
    path("rooms/<slug:slug>/robot/", views.robot, name="robot"),
    path("assistant/", views.assistant, name="assistant"),
    path("assistant/<int:pk>/", views.assistant, name="conversation"),
    path("migrations/", views.migrations, name="migrations"),
    path("migrations/<slug:topic>/broadcast/", views.migrations_broadcast, name="migrations_broadcast"),
    path(
        "login/",
        auth_views.LoginView.as_view(
            extra_context=OPEN_ACCOUNTS if settings.DEMO_OPEN_ACCOUNTS else None, redirect_authenticated_user=True
        ),
        name="login",
    ),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
]
