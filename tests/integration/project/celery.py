"""The Celery application of the project. An environment variable names the broker."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.integration.project.settings")
app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_init.connect  # type: ignore[untyped-decorator]
def use_the_engine(**kwargs: Any) -> None:
    """Broadcast before the worker forks, as a project may do. The children must not share the engine's connections."""
    import reliable_cable

    reliable_cable.broadcast("workers", {"started": os.getpid()})
