"""Plans the change to `asgi.py` that adds a WebSocket route for `CableConsumer`."""

from __future__ import annotations

from dataclasses import replace as with_changes
from typing import Final

import libcst as cst
from django.apps import apps
from django.conf import settings
from libcst import matchers as m

from .plan import Plan, Step, shown
from .project import Source, find_source, imported_sources, required_source
from .syntax import (
    NotUnderstood,
    add_imports,
    calls,
    in_quotes_of,
    insert_first,
    insert_last,
    only_argument,
    only_value,
    replace,
    string_value,
)

ROUTE: Final = 'path("cable", CableConsumer.as_asgi())'
WEBSOCKET: Final = f'"websocket": AuthMiddlewareStack(URLRouter([{ROUTE}]))'
ROUTER: Final = f"""ProtocolTypeRouter(
    {{
        "http": get_asgi_application(),
        {WEBSOCKET},
    }}
)"""
ROUTE_IMPORTS: Final = {"django.urls": ["path"], "reliable_cable": ["CableConsumer"]}
WEBSOCKET_IMPORTS: Final = {
    "channels.auth": ["AuthMiddlewareStack"],
    "channels.routing": ["URLRouter"],
    **ROUTE_IMPORTS,
}
ROUTER_IMPORTS: Final = {**WEBSOCKET_IMPORTS, "channels.routing": ["ProtocolTypeRouter", "URLRouter"]}

NEW_MODULE: Final = '''"""The ASGI application of this project."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "{settings}")

application = get_asgi_application()
'''

BY_HAND: Final = f"""from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path
from reliable_cable import CableConsumer

application = {ROUTER}
"""

AUTHENTICATION: Final = {"AuthMiddlewareStack", "CableAuthMiddlewareStack"}
NO_AUTHENTICATION: Final = (
    "{path} has no AuthMiddlewareStack around the WebSocket routes. Without it, or a middleware of yours that sets "
    'scope["user"], channels do not know their user: self.user is None.'
)
NO_USERS: Final = (
    "django.contrib.auth is not in INSTALLED_APPS, and AuthMiddlewareStack needs it. Add it, or remove "
    "AuthMiddlewareStack from {path}: self.user of channels is then None."
)
CABLE: Final = "{path} is not changed, because {other} already uses CableConsumer or has a route `cable`."
ORIGINS: Final = (
    "{path} has an {name} around the WebSocket routes. CableConsumer checks origins itself, and also accepts "
    "CSRF_TRUSTED_ORIGINS and clients without an origin, which the validator refuses."
)


def plan_asgi(plan: Plan) -> str | None:
    """Plan the change to asgi.py. Return the dotted path of the ASGI application; None if it is unknown."""
    application = getattr(settings, "ASGI_APPLICATION", None) or _usual_application()
    source = None
    try:
        if application is None:
            raise NotUnderstood("neither ASGI_APPLICATION nor WSGI_APPLICATION is set to the path of an application")
        module_name, _, variable = application.rpartition(".")
        source = find_source(module_name) or _new_source(module_name)
        serving = next((each for each in (source, *imported_sources(source)) if _has_cable(each.module)), None)
        if serving is None:
            module, notes = _add_route(source.module, variable)
            if calls(module, "AuthMiddlewareStack") and not apps.is_installed("django.contrib.auth"):
                notes.append((NO_USERS, {}))
            plan.edit(source, module.bytes)
            plan.notes.extend(note.format(path=shown(source.path), **names) for note, names in notes)
        elif not _names_consumer(source.module):
            plan.notes.append(CABLE.format(path=shown(source.path), other=shown(serving.path)))
    except NotUnderstood as error:
        where = shown(source.path) if source else f"the ASGI application ({application or 'asgi.py'})"
        plan.steps.append(Step(f"{where}: {error}. Route WebSockets to the cable there, as in this example:", BY_HAND))
    return application


def _usual_application() -> str | None:
    """Return the usual dotted path of the ASGI application, which is in the package of wsgi.py or urls.py.

    Return None if the settings name neither of these modules, or if urls.py is not in a package.
    """
    wsgi: str | None = settings.WSGI_APPLICATION
    urls: str = getattr(settings, "ROOT_URLCONF", None) or ""
    package = wsgi.rsplit(".", 2)[0] if wsgi and wsgi.count(".") > 1 else urls.rpartition(".")[0]
    return f"{package}.asgi.application" if package else None


def _new_source(name: str) -> Source:
    """Return the source of a new asgi.py, which loads the same settings as the wsgi.py in its package."""
    package = name.rpartition(".")[0]
    wsgi = required_source(f"{package}.wsgi")
    named = [
        string_value(call.args[1].value)
        for call in calls(wsgi.module, "setdefault")
        if len(call.args) == 2 and string_value(call.args[0].value) == "DJANGO_SETTINGS_MODULE"
    ]
    if len(named) != 1 or named[0] is None:
        raise NotUnderstood(f"{shown(wsgi.path)} does not say which settings it loads")
    module = cst.parse_module(NEW_MODULE.format(settings=named[0]))
    return with_changes(wsgi, name=name, path=wsgi.path.with_name("asgi.py"), text=b"", module=module)


def _has_cable(module: cst.Module) -> bool:
    """Return whether a module uses `CableConsumer` or has a route with the path `cable`."""
    routes = [call for name in ("path", "re_path") for call in calls(module, name) if call.args]
    paths = {(string_value(call.args[0].value) or "").strip("^/?$") for call in routes}
    return "cable" in paths or _names_consumer(module)


def _names_consumer(module: cst.Module) -> bool:
    return bool(m.findall(module, m.Name("CableConsumer")))


Notes = list[tuple[str, dict[str, str]]]


def _add_route(module: cst.Module, variable: str) -> tuple[cst.Module, Notes]:
    """Return the ASGI module with a route for `CableConsumer`, and notes for the user.

    Args:
        module: the current ASGI module.
        variable: the name of the ASGI application in the module.

    Raises:
        NotUnderstood: the application is not written in a form that can be edited.
    """
    application = only_value(module, variable)
    if m.matches(application, m.Call(func=m.Name("get_asgi_application"), args=[])):
        router = cst.parse_expression(in_quotes_of(module, ROUTER))
        return add_imports(replace(module, application, router), ROUTER_IMPORTS), []
    if not isinstance(application, cst.Call) or application not in calls(application, "ProtocolTypeRouter"):
        raise NotUnderstood(f"`{variable}` is neither `get_asgi_application()` nor a `ProtocolTypeRouter`")
    protocols = only_argument(application)
    if not isinstance(protocols, cst.Dict) or not all(isinstance(e, cst.DictElement) for e in protocols.elements):
        raise NotUnderstood("the argument of `ProtocolTypeRouter` is not a plain dict")
    elements = [element for element in protocols.elements if isinstance(element, cst.DictElement)]
    websocket = next((element.value for element in elements if string_value(element.key) == "websocket"), None)
    if websocket is None:
        extended = insert_last(protocols, in_quotes_of(module, WEBSOCKET))
        return add_imports(replace(module, protocols, extended), WEBSOCKET_IMPORTS), []
    routers = calls(websocket, "URLRouter")
    if not routers or len(calls(routers[0], "URLRouter")) != len(routers):
        raise NotUnderstood('the value of "websocket" does not have exactly one outer `URLRouter`')
    routes = only_argument(routers[0])
    if routes is None:
        raise NotUnderstood("`URLRouter` does not have exactly one argument")
    extended_routes = _with_route(routes, in_quotes_of(module, ROUTE))
    return add_imports(replace(module, routes, extended_routes), ROUTE_IMPORTS), _notes(websocket, routers[0])


def _with_route(routes: cst.BaseExpression, route: str) -> cst.List:
    if isinstance(routes, cst.List):
        return insert_first(routes, route)
    if not isinstance(routes, cst.Name | cst.Attribute | cst.Call | cst.BinaryOperation):
        raise NotUnderstood("the argument of `URLRouter` is not a list, a name or a sum")
    first = cst.Element(cst.parse_expression(route), comma=cst.Comma(whitespace_after=cst.SimpleWhitespace(" ")))
    return cst.List([first, cst.StarredElement(routes)])


def _notes(websocket: cst.BaseExpression, router: cst.Call) -> Notes:
    """Return notes about the middlewares around the router: missing authentication, and needless origin validators."""
    around = [call for call in m.findall(websocket, m.Call()) if isinstance(call, cst.Call) and call is not router]
    names = [
        cst.ensure_type(node, cst.Name).value
        for call in around
        if router in calls(call, "URLRouter")
        for node in m.findall(call.func, m.Name())
    ]
    notes: Notes = []
    if AUTHENTICATION.isdisjoint(names):
        notes.append((NO_AUTHENTICATION, {}))
    notes.extend((ORIGINS, {"name": name}) for name in names if name.endswith("OriginValidator"))
    return notes
