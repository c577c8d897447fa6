"""Plans all changes to a project: to asgi.py, to the settings, and for the example."""

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
        # The user must edit the settings first: the changed asgi.py imports apps that are not in INSTALLED_APPS yet.
        plan.changes.clear()
    if example:
        plan_example(plan, with_url=has_apps)
    # Changes to existing files are shown after new files, so that these changes are still visible in the terminal when
    # the user is asked to confirm.
    plan.changes = dict(sorted(plan.changes.items(), key=lambda change: (change[0].exists(), change[0])))
    return plan
