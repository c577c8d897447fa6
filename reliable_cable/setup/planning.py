"""Makes the whole plan for a project."""

from __future__ import annotations

from .asgi import plan_asgi
from .example import APP, URL, plan_example
from .plan import Plan
from .settings import plan_settings

__all__ = ["URL", "Plan", "make_plan"]


def make_plan(*, example: bool) -> Plan:
    """Return the plan for the project whose settings are loaded.

    Args:
        example: whether to add the example app.
    """
    plan = Plan()
    application = plan_asgi(plan)
    plan_settings(plan, application, APP if example else None)
    if example:
        plan_example(plan)
    plan.changes = dict(sorted(plan.changes.items()))
    return plan
