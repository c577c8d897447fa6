"""The Django app configuration of the demo's app."""

from __future__ import annotations

from django.apps import AppConfig


class ChatConfig(AppConfig):
    name = "demo_project.chat"
    label = "chat"

    def ready(self) -> None:
        """Connect the receivers of signals."""
        from . import receivers  # noqa: F401 - the import needs the models
