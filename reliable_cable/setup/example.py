"""Plans the example app (a channel, a web page and tests), and the route to it in the project's URLs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import libcst as cst
from django.conf import settings
from libcst import matchers as m

from .plan import Change, Plan, Step, shown
from .project import required_source
from .syntax import NotUnderstood, add_imports, in_quotes_of, insert_first, only_value, operands, replace, string_value

APP: Final = "cable_example"
URL: Final = "cable-example/"
ROUTE: Final = f'path("{URL}", include("{APP}.urls"))'
IMPORTS: Final = {"django.urls": ["include", "path"]}
BY_HAND: Final = f"""from django.urls import include, path

urlpatterns = [
    {ROUTE},
    # … your routes
]
"""
TEMPLATES: Final = Path(__file__).with_name("templates")
#: The suffix of the names of template files. With the suffix `.py`, linters and test runners would process them.
SUFFIX: Final = "-tpl"


def plan_example(plan: Plan, *, with_url: bool) -> None:
    """Plan the files of the example app and its route. Existing files of the app are not changed.

    Args:
        plan: the plan to which the changes are added.
        with_url: whether to add the route. It must not be added if `INSTALLED_APPS` will not contain the app.
    """
    source = None
    urls = getattr(settings, "ROOT_URLCONF", None)
    try:
        if not urls:
            raise NotUnderstood("the setting is missing")
        source = required_source(urls)
        if with_url and not _has_string(source.module, f"{APP}.urls"):
            plan.edit(source, _add_url(source.module).bytes)
        folder = source.root / APP
    except NotUnderstood as error:
        where = shown(source.path) if source else f"the URLs ({urls or 'ROOT_URLCONF'})"
        plan.steps.append(Step(f"{where}: {error}. Write there:", BY_HAND))
        folder = (source.root if source else Path.cwd()) / APP
    for template in sorted(TEMPLATES.rglob(f"*{SUFFIX}")):
        name = template.relative_to(TEMPLATES)
        path = folder / name.with_name(name.name.removesuffix(SUFFIX))
        if not path.exists():
            plan.changes[path] = Change(b"", template.read_bytes())


def _has_string(module: cst.Module, value: str) -> bool:
    return any(string_value(node) == value for node in m.findall(module, m.SimpleString()))


def _add_url(module: cst.Module) -> cst.Module:
    """Return a URL module with the route to the example. It comes first, because another route may match all paths."""
    first = operands(only_value(module, "urlpatterns", extended=True))[0]
    if not isinstance(first, cst.List):
        raise NotUnderstood("`urlpatterns` does not begin with a list")
    extended = insert_first(first, in_quotes_of(module, ROUTE))
    return add_imports(replace(module, first, extended), IMPORTS)
