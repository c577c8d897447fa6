"""`manage.py cable_setup` changes many forms of asgi.py, and adds the imports that the changes need."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.unit.sites import ASGI, MakeSite


def routed(websocket: str, imports: str = "") -> str:
    """Return an asgi.py with a ProtocolTypeRouter."""
    return (
        "from channels.auth import AuthMiddlewareStack\n"
        "from channels.routing import ProtocolTypeRouter, URLRouter\n"
        f"{imports}"
        f"application = ProtocolTypeRouter({{{websocket}}})\n"
    )


ROUTE = 'path("cable", CableConsumer.as_asgi())'


class TestAsgi:
    def test_the_plain_application_gets_a_router(self, make_site: MakeSite) -> None:
        site = make_site()
        site.set_up()
        assert site["asgi.py"] == dedent(
            """\
            from channels.auth import AuthMiddlewareStack
            from channels.routing import ProtocolTypeRouter, URLRouter
            from django.core.asgi import get_asgi_application
            from django.urls import path
            from reliable_cable import CableConsumer

            application = ProtocolTypeRouter(
                {
                    "http": get_asgi_application(),
                    "websocket": AuthMiddlewareStack(URLRouter([path("cable", CableConsumer.as_asgi())])),
                }
            )
            """
        )

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ('"http": app', f'"http": app, "websocket": AuthMiddlewareStack(URLRouter([{ROUTE}]))'),
            (
                '\n    "http": app,  # pages\n',
                f'\n    "http": app,  # pages\n    "websocket": AuthMiddlewareStack(URLRouter([{ROUTE}])),\n',
            ),
            (
                '"websocket": AuthMiddlewareStack(URLRouter(chat.urls))',
                f'"websocket": AuthMiddlewareStack(URLRouter([{ROUTE}, *chat.urls]))',
            ),
            (
                '"websocket": AuthMiddlewareStack(URLRouter(a + b))',
                f'"websocket": AuthMiddlewareStack(URLRouter([{ROUTE}, *a + b]))',
            ),
            (
                '"websocket": AuthMiddlewareStack(URLRouter([path("", URLRouter([]))]))',
                f'"websocket": AuthMiddlewareStack(URLRouter([{ROUTE}, path("", URLRouter([]))]))',
            ),
        ],
    )
    def test_a_route_is_added(self, make_site: MakeSite, before: str, after: str) -> None:
        site = make_site({"asgi.py": routed(before)})
        assert "Note" not in site.set_up()
        imports = "from django.urls import path\nfrom reliable_cable import CableConsumer\n"
        assert site["asgi.py"] == routed(after, imports)

    def test_a_project_without_users_is_told_what_they_need(self, make_site: MakeSite, settings: Any) -> None:
        note = "Note: django.contrib.auth is not in INSTALLED_APPS, and AuthMiddlewareStack needs it."
        site = make_site()
        assert note not in site.set_up(dry_run=True, yes=False)
        settings.INSTALLED_APPS = ["django.contrib.contenttypes"]
        assert note in site.set_up(dry_run=True, yes=False)

    def test_the_documented_module_is_what_is_written(self, make_site: MakeSite) -> None:
        page = (Path(__file__).parents[2] / "docs/settings.md").read_text()
        site = make_site()
        site.set_up()
        assert [line for line in site["asgi.py"].splitlines() if line not in page] == []

    @pytest.mark.parametrize("middleware", ["", "JWTAuthMiddlewareStack"])
    def test_missing_authentication_is_named(self, make_site: MakeSite, middleware: str) -> None:
        site = make_site({"asgi.py": routed(f'"websocket": {middleware}(URLRouter([]))')})
        assert "Note: SITE/asgi.py has no AuthMiddlewareStack around the WebSocket routes." in site.set_up()

    def test_validators_of_origins_are_named(self, make_site: MakeSite) -> None:
        router = "security.AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter([])))"
        output = make_site({"asgi.py": routed(f'"websocket": {router}')}).set_up()
        assert "Note: SITE/asgi.py has an AllowedHostsOriginValidator around the WebSocket routes." in output
        assert "has no AuthMiddlewareStack" not in output

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("from other import application\n", "`application` is not assigned exactly once"),
            (ASGI + "application = Wrapped(application)\n", "`application` is not assigned exactly once"),
            ("async def application(scope, receive, send): ...\n", "`application` is not assigned exactly once"),
            ("class application: ...\n", "`application` is not assigned exactly once"),
            ("application: Any\n", "`application` is not assigned exactly once"),
            ("application = Wrapped(get_asgi_application())\n", "`application` is neither"),
            (routed("**protocols"), "the argument of `ProtocolTypeRouter` is not a plain dict"),
            (
                "application = ProtocolTypeRouter(protocols)\n",
                "the argument of `ProtocolTypeRouter` is not a plain dict",
            ),
            ("application = ProtocolTypeRouter({}, {})\n", "the argument of `ProtocolTypeRouter` is not a plain dict"),
            (routed('"websocket": sockets'), 'the value of "websocket" does not have exactly one'),
            (
                routed('"websocket": first(URLRouter([]), URLRouter([]))'),
                'the value of "websocket" does not have exactly one',
            ),
            (routed('"websocket": URLRouter(routes=[])'), "`URLRouter` does not have exactly one argument"),
            (routed('"websocket": URLRouter([] if a else b)'), "the argument of `URLRouter` is not a list"),
            (
                "from os import path\n" + ASGI,
                "the name `path` is already used for something other than django.urls.path",
            ),
            (
                "import os.path as path\n" + ASGI,
                "the name `path` is already used for something other than django.urls.path",
            ),
            *[
                (code + ASGI, "the name `path` is already used for something other than django.urls.path")
                for code in (
                    "path = 'cable'\n",
                    "for name, path in (): pass\n",
                    "with open(__file__) as path: pass\n",
                    "found = (path := 'cable')\n",
                )
            ],
        ],
    )
    def test_applications_that_are_not_understood_stay(self, make_site: MakeSite, text: str, reason: str) -> None:
        site = make_site({"asgi.py": text})
        output = site.set_up()
        assert site["asgi.py"] == text
        assert f"Not changed: SITE/asgi.py: {reason}" in output
        assert f'"websocket": AuthMiddlewareStack(URLRouter([{ROUTE}]))' in output

    @pytest.mark.parametrize(
        "routing",
        ["class AppConsumer(CableConsumer): ...\n", 'urls = [re_path(r"^cable/?$", AppConsumer.as_asgi())]\n'],
    )
    def test_a_cable_that_is_served_already_is_found(self, make_site: MakeSite, routing: str) -> None:
        text = routed('"websocket": URLRouter(urls)', "from SITE.routing import urls\n")
        site = make_site({"asgi.py": text, "routing.py": routing})
        assert "Note: SITE/asgi.py is not changed, because SITE/routing.py already uses" in site.set_up()
        assert site["asgi.py"] == text

    def test_a_missing_asgi_module_gets_the_settings_of_wsgi(self, make_site: MakeSite) -> None:
        wsgi = 'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "SITE.production")\n'
        site = make_site({"wsgi.py": wsgi})
        (site.folder / "asgi.py").unlink()
        assert "--- /dev/null\n+++ b/SITE/asgi.py" in site.set_up()
        assert wsgi in site["asgi.py"]
        assert f'"websocket": AuthMiddlewareStack(URLRouter([{ROUTE}])),\n' in site["asgi.py"]

    @pytest.mark.parametrize("wsgi", ["", None])
    def test_without_a_wsgi_module_that_names_settings_no_asgi_module_is_made(
        self, make_site: MakeSite, wsgi: str | None
    ) -> None:
        site = make_site({} if wsgi is None else {"wsgi.py": wsgi})
        (site.folder / "asgi.py").unlink()
        assert "Not changed: " in site.set_up()
        assert not (site.folder / "asgi.py").exists()

    def test_without_the_paths_of_applications_it_says_so(self, make_site: MakeSite, settings: Any) -> None:
        site = make_site()
        settings.WSGI_APPLICATION = None
        settings.ROOT_URLCONF = "urls"
        assert (
            "Not changed: the ASGI application (asgi.py): neither ASGI_APPLICATION nor WSGI_APPLICATION is set"
            in site.set_up()
        )


class TestImports:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ('"""Doc."""\nurlpatterns = []\n', '"""Doc."""\n\nfrom django.urls import include, path\nurlpatterns'),
            ("urlpatterns = []\n", "from django.urls import include, path\nurlpatterns"),
            ("import os\n\nurlpatterns = []\n", "import os\n\nfrom django.urls import include, path\n\nurlpatterns"),
            (
                "import os\n\nfrom rest import a\n\nurlpatterns = []\n",
                "import os\n\nfrom django.urls import include, path\nfrom rest import a\n\nurlpatterns",
            ),
            (
                "from django.urls import re_path, reverse\nurlpatterns = []\n",
                "from django.urls import include, path, re_path, reverse\nurlpatterns",
            ),
            (
                "from django.urls import (\n    converters,\n    path,\n)\nurlpatterns = []\n",
                "from django.urls import (\n    converters,\n    include,\n    path,\n)\nurlpatterns",
            ),
            (
                "from django.urls import (\n    converters,\n)\nurlpatterns = []\n",
                "from django.urls import (\n    converters,\n    include,\n    path,\n)\nurlpatterns",
            ),
            (
                "# Django\nfrom django.conf import x\n\n# b\nfrom rest import a\nurlpatterns = []\n",
                "# Django\nfrom django.conf import x\n\nfrom django.urls import include, path\n# b\nfrom rest import",
            ),
            (
                "def f():\n    from django.urls import include, path\nurlpatterns = []\n",
                "from django.urls import include, path\ndef f():\n    from django.urls import include, path\n",
            ),
            (
                "from .views import a\nfrom django.conf import *\nurlpatterns = []\n",
                "from .views import a\nfrom django.conf import *\nfrom django.urls import include, path\nurlpatterns",
            ),
        ],
    )
    def test_imports_are_added(self, make_site: MakeSite, before: str, after: str) -> None:
        site = make_site({"urls.py": before})
        site.set_up(example=True)
        assert site["urls.py"].startswith(after)
