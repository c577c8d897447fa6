"""URLs of the HTTP endpoints. Add `path("", include("reliable_cable.urls"))` to the project's `urlpatterns`."""

from django.urls import path

from .http import broadcast, presence

app_name = "reliable_cable"
urlpatterns = [
    path("_broadcast", broadcast.broadcast, name="broadcast"),
    path("api/publish", broadcast.publish, name="publish"),
    # A stream name may contain slashes.
    path("api/presence/<path:stream>/users", presence.users, name="presence"),
]
