"""Makes the whole plan for a project."""

from __future__ import annotations

from .asgi import plan_asgi
from .example import APP, plan_example
from .plan import Plan
from .settings import plan_settings


def make_plan(*, example: bool) -> Plan:
    """Return the plan for the project whose settings are loaded.

    Args:
        example: whether to add the example app.
    """
    plan = Plan()
    application = plan_asgi(plan)
    has_apps = plan_settings(plan, application, APP if example else None)
    if not has_apps:
        # Without the apps, asgi.py cannot be imported after its change.
        plan.changes.clear()
    if example:
        plan_example(plan, with_url=has_apps)
    # Changes of the project's own files come last, next to the question.
    plan.changes = dict(sorted(plan.changes.items(), key=lambda change: (change[0].exists(), change[0])))
    return plan
