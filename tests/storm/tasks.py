"""A Celery worker of the project, for the storm: makes calls in its prefork children.

The environment says where the broker is, which is also where results go.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import django
from celery import Celery

TASK = "storm.perform"


def make_app(broker: str) -> Celery:
    """Return the application, for the worker or for who sends tasks to it."""
    app = Celery("storm", broker=broker, backend=broker, set_as_current=False)
    app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False, result_expires=60)
    return app


if "CABLE_STORM_BROKER" in os.environ:
    django.setup()
    app = make_app(os.environ["CABLE_STORM_BROKER"])

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def perform(request: Mapping[str, Any]) -> dict[str, Any]:
        """Make a call (tests/integration/project/calls.py) in this worker."""
        from tests.integration.project.calls import perform

        return perform(request)
