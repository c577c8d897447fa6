"""Plans the changes to the settings `INSTALLED_APPS`, `ASGI_APPLICATION` and `RELIABLE_CABLE`."""

from __future__ import annotations

import os
from typing import Any, Final

import libcst as cst
from django.conf import ENVIRONMENT_VARIABLE, settings

from .plan import Plan, Step, shown
from .project import Source, imported_sources, required_source
from .syntax import (
    NotUnderstood,
    find_assignments,
    in_quotes_of,
    insert_first,
    insert_last,
    insert_statements,
    only_value,
    operands,
    replace,
    string_value,
)

CABLE_SETTINGS: Final = """

# Streams and members are stored in the database. With Redis, broadcasts reach other servers sooner.
RELIABLE_CABLE = {
    # "REDIS_URL": "redis://localhost:6379/0",
}
"""


def plan_settings(plan: Plan, asgi_application: str | None, example: str | None) -> bool:
    """Plan the changes to the settings.

    Args:
        plan: the plan to which the changes are added.
        asgi_application: the value of `ASGI_APPLICATION` for a project that does not set it; None if it is unknown.
        example: the name of the example app; None if the user does not want it.

    Returns:
        Whether `INSTALLED_APPS` contains all needed apps after the plan is applied.
    """
    front = [] if _has_app("daphne") else ["daphne"]
    back = [app for app in ("channels", "reliable_cable") if not _has_app(app)]
    own = [example] if example and not _has_app(example) else []
    statements = {}
    if not getattr(settings, "ASGI_APPLICATION", None) and asgi_application:
        statements["ASGI_APPLICATION"] = f'ASGI_APPLICATION = "{asgi_application}"\n'
    if not hasattr(settings, "RELIABLE_CABLE"):
        statements["RELIABLE_CABLE"] = CABLE_SETTINGS
    _note_late_daphne(plan)
    if not (front or back or own or statements):
        return True
    source = None
    try:
        source = _defining_source("INSTALLED_APPS")
        module = _add_apps(source.module, front, back, own)
        for name, code in statements.items():
            if find_assignments(module, name):
                raise NotUnderstood(f"`{name}` is assigned here, but the loaded settings do not have it")
            module = insert_statements(module, code, after="WSGI_APPLICATION" if name == "ASGI_APPLICATION" else None)
        plan.edit(source, module.bytes)
        return True
    except NotUnderstood as error:
        missing = bool(front or back or own)
        where = shown(source.path) if source else f"the settings ({_settings_module() or ENVIRONMENT_VARIABLE})"
        lines = [*(f'"{app}",' for app in front), "# … your apps", *(f'"{app}",' for app in back + own)]
        indented = "\n    ".join(lines)
        code = f"INSTALLED_APPS = [\n    {indented}\n]\n" if missing else ""
        what = f"{where}: {error}. Write there{', and run this command again' if missing else ''}:"
        plan.steps.append(Step(what, code + "".join(statements.values())))
        return not missing


def _settings_module() -> str:
    return os.environ.get(ENVIRONMENT_VARIABLE, "")


def _has_app(name: str) -> bool:
    return any(app == name or app.startswith(f"{name}.apps.") for app in settings.INSTALLED_APPS)


def _note_late_daphne(plan: Plan) -> None:
    apps = list(settings.INSTALLED_APPS)
    if {"daphne", "django.contrib.staticfiles"} <= set(apps):
        if apps.index("daphne") > apps.index("django.contrib.staticfiles"):
            plan.notes.append(
                'Move "daphne" to the beginning of INSTALLED_APPS. Behind "django.contrib.staticfiles", its runserver '
                "is not used, and that of Django serves no WebSockets."
            )


def _defining_source(name: str) -> Source:
    """Return the file that assigns a setting: the settings module, or a module that it imports by `from … import *`.

    Raises:
        NotUnderstood: none of these files assigns the setting, or several do.
    """
    if not _settings_module():
        raise NotUnderstood("the environment variable is not set")
    first = required_source(_settings_module())
    sources = {source.path: source for source in (first, *imported_sources(first, star=True))}
    defining = [
        source for source in sources.values() if any(not a.extends for a in find_assignments(source.module, name))
    ]
    if len(defining) != 1:
        files = ", ".join(shown(source.path) for source in defining) or "no file that is a part of the settings"
        raise NotUnderstood(f"`{name}` is assigned in {files}, not in exactly one file")
    return defining[0]


def _add_apps(module: cst.Module, front: list[str], back: list[str], own: list[str]) -> cst.Module:
    """Return a settings module with additional apps.

    `INSTALLED_APPS` must be a list, or a sum of named lists such as `DJANGO_APPS + THIRD_PARTY_APPS + LOCAL_APPS`.

    Args:
        module: the settings module.
        front: the apps to insert at the beginning.
        back: the apps to append. In a sum, they are appended to the list of third-party apps.
        own: the project's own apps to append.
    """
    value = only_value(module, "INSTALLED_APPS", extended=True)
    names = ["INSTALLED_APPS"]
    if not isinstance(value, cst.List):
        names = [operand.value for operand in operands(value) if isinstance(operand, cst.Name)]
        if len(names) != len(operands(value)):
            raise NotUnderstood("`INSTALLED_APPS` is neither a list nor a sum of lists that have names")
    for name in names:
        _check_list(only_value(module, name, extended=True), name)
    third_party = next((name for name in names if "THIRD" in name), names[-1])
    edits = [(names[0], insert_first, front), (third_party, insert_last, back), (names[-1], insert_last, own)]
    insert: Any
    for name, insert, apps in edits:
        for app in apps:
            old = only_value(module, name, extended=True)
            module = replace(module, old, insert(old, in_quotes_of(module, f'"{app}"')))
    return module


def _check_list(value: cst.BaseExpression, name: str) -> None:
    """Check that a value is a list literal whose apps are in the loaded settings.

    If an app is not in the loaded settings, another file or statement must replace the list, so that changes to this
    list would have no effect.

    Raises:
        NotUnderstood: the value is not such a list.
    """
    if not isinstance(value, cst.List):
        raise NotUnderstood(f"`{name}` is not a list")
    found = {string_value(element.value) for element in value.elements} - {None}
    if not found <= set(settings.INSTALLED_APPS):
        raise NotUnderstood(f"`{name}` has apps that are not installed, so another file or statement must replace it")
