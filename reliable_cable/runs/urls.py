"""The URLs of the HTTP endpoints of runs. Add `path("runs/", include("reliable_cable.runs.urls"))` to `urlpatterns`."""

from django.urls import path

from .http import ag_ui_views, durable_views, views

app_name = "reliable_cable_runs"
urlpatterns = [
    path("chat", views.chat, name="chat"),
    # The converter is `path`, because the id of a chat may contain slashes.
    path("chat/<path:chat>/stream", views.chat_stream, name="chat_stream"),
    path("chat/<path:chat>/stop", views.chat_stop, name="chat_stop"),
    path("ag-ui", ag_ui_views.run, name="ag_ui"),
    path("ag-ui/connect", ag_ui_views.connect, name="ag_ui_connect"),
    path("durable/<path:name>", durable_views.durable, name="durable"),
    path("<str:run>", views.run, name="run"),
    path("<str:run>/durable", durable_views.durable_run, name="durable_run"),
    path("<str:run>/stop", views.run_stop, name="run_stop"),
]
