"""The URLs of the HTTP endpoints. Add `path("", include("reliable_cable.urls"))` to the project's `urlpatterns`."""

from django.urls import path

from .http import views

app_name = "reliable_cable"
urlpatterns = [
    path("_broadcast", views.broadcast, name="broadcast"),
    path("api/publish", views.publish, name="publish"),
    # The converter is `path`, because the name of a stream may contain slashes.
    path("api/presence/<path:stream>/users", views.users, name="presence"),
]
