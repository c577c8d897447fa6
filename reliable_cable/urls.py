"""The HTTP endpoints: `path("", include("reliable_cable.urls"))` in the project's urls.py."""

from __future__ import annotations

from django.urls import path

from .http import broadcast, presence

app_name = "reliable_cable"
urlpatterns = [
    path("_broadcast", broadcast.broadcast, name="broadcast"),
    path("api/publish", broadcast.publish, name="publish"),
    # A stream's name may hold slashes; what is left of the path is not the name's.
    path("api/presence/<path:stream>/users", presence.users, name="presence"),
]
