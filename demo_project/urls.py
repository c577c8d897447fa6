"""URLs of the demo."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.urls import path

from demo_project.chat import views
from demo_project.chat.accounts import DEMO_USERS, PASSWORD

urlpatterns = [
    path("", views.rooms, name="rooms"),
    path("rooms/<slug:slug>/", views.room, name="room"),
    path("rooms/<slug:slug>/messages/", views.room_messages, name="room_messages"),
    path("rooms/<slug:slug>/robot/", views.robot, name="robot"),
    path("assistant/", views.assistant, name="assistant"),
    path("assistant/answers/<int:pk>/", views.answer, name="answer"),
    path("migrations/", views.migrations, name="migrations"),
    path("migrations/<slug:topic>/broadcast/", views.migrations_broadcast, name="migrations_broadcast"),
    path(
        "login/",
        auth_views.LoginView.as_view(
            extra_context={"demo_users": DEMO_USERS, "demo_password": PASSWORD}, redirect_authenticated_user=True
        ),
        name="login",
    ),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
]
