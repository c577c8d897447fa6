"""The ASGI application of the demo, which also serves the static files, as `runserver` does."""

from __future__ import annotations

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler

from demo_project.asgi import application as demo

application = ASGIStaticFilesHandler(demo)
