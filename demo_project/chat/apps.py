"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class ChatConfig(AppConfig):
    """The demo's rooms, messages and answers."""

    name = "demo_project.chat"
    label = "chat"
