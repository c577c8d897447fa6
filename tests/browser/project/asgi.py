"""The demo's application, with the static files that `runserver` would add."""

from __future__ import annotations

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler

from demo_project.asgi import application as demo

application = ASGIStaticFilesHandler(demo)
