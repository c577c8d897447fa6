"""`manage.py cable_setup` on source of many forms. tests/integration/test_setup.py sets up whole projects."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from reliable_cable.management.commands.cable_setup import Command
from reliable_cable.setup import plan as plan_module

_numbers = itertools.count(1)

SETTINGS = 'INSTALLED_APPS = ["django.contrib.auth"]\n'
ASGI = """\
from django.core.asgi import get_asgi_application

application = get_asgi_application()
"""
URLS = "from django.urls import path\n\nurlpatterns = []\n"

Make = Callable[..., "Site"]


class Site:
    """The package of a project, whose settings are in force."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    def __getitem__(self, name: str) -> str:
        return (self.folder / name).read_bytes().decode().replace(self.name, "SITE")

    def set_up(self, **options: Any) -> str:
        """Run the command without the example, and return its output."""
        output = io.StringIO()
        call_command(Command(), stdout=output, no_color=True, **{"yes": True, "example": False, **options})
        return output.getvalue().replace(self.name, "SITE")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Make:
    """Makes a project. Its files replace the usual ones, and `SITE` in them is the name of its package."""

    def make(files: Mapping[str, str] | None = None, apps: tuple[str, ...] = ("django.contrib.auth",)) -> Site:
        name = f"site_{next(_numbers)}"
        site = Site(tmp_path / name, name)
        for path, text in {"settings.py": SETTINGS, "asgi.py": ASGI, "urls.py": URLS, **(files or {})}.items():
            file = site.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.replace("SITE", name).encode())
        (site.folder / "__init__.py").touch()
        monkeypatch.setenv("DJANGO_SETTINGS_MODULE", f"{name}.settings")
        settings.ROOT_URLCONF = f"{name}.urls"
        settings.WSGI_APPLICATION = f"{name}.wsgi.application"
        settings.INSTALLED_APPS = list(apps)
        del settings.ASGI_APPLICATION
        del settings.RELIABLE_CABLE
        return site

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return make


class TestSettings:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ('["django.contrib.auth"]', '["daphne", "django.contrib.auth", "channels", "reliable_cable"]'),
            (
                "[\n\t'django.contrib.auth'\n]",
                "[\n\t'daphne',\n\t'django.contrib.auth',\n\t'channels',\n\t'reliable_cable',\n]",
            ),
            (
                '[  # first\n    # Django\n    "django.contrib.auth",  # users\n    # last\n]',
                '[  # first\n    "daphne",\n    # Django\n    "django.contrib.auth",  # users\n    # last\n'
                '    "channels",\n    "reliable_cable",\n]',
            ),
            (
                '[\n    "django.contrib.auth"]',
                '[\n    "daphne",\n    "django.contrib.auth",\n    "channels",\n    "reliable_cable"]',
            ),
            ("[]", '["daphne", "channels", "reliable_cable"]'),
        ],
    )
    def test_apps_are_added_in_the_style_of_the_list(self, make: Make, before: str, after: str) -> None:
        site = make({"settings.py": f"INSTALLED_APPS: list[str] = {before}\n"})
        site.set_up()
        assert site["settings.py"].startswith(f"INSTALLED_APPS: list[str] = {after}\nASGI_APPLICATION = ")

    def test_apps_are_added_to_lists_that_are_summed(self, make: Make) -> None:
        lists = 'DJANGO_APPS = ["django.contrib.auth"]\nTHIRD_PARTY_APPS = []\nOWN_APPS = []\n'
        total = "INSTALLED_APPS = DJANGO_APPS + THIRD_PARTY_APPS + OWN_APPS\n"
        site = make({"settings.py": lists + total})
        site.set_up(example=True)
        assert site["settings.py"].startswith(
            'DJANGO_APPS = ["daphne", "django.contrib.auth"]\nTHIRD_PARTY_APPS = ["channels", "reliable_cable"]\n'
            f'OWN_APPS = ["cable_example"]\n{total}'
        )

    def test_the_file_that_others_import_is_changed(self, make: Make) -> None:
        files = {
            "settings.py": "from SITE.base import *\n\nINSTALLED_APPS += []\nINSTALLED_APPS = [*INSTALLED_APPS]\n",
            "base.py": "from .common import *\n",
            "common.py": "from datetime import *\nfrom . import *\n" + SETTINGS,
        }
        site = make(files)
        site.set_up()
        assert '"reliable_cable"' in site["common.py"]
        assert {name: site[name] for name in ("settings.py", "base.py")} == {
            k: files[k] for k in ("settings.py", "base.py")
        }

    def test_the_application_follows_that_of_wsgi_and_the_comment_at_the_end_stays(self, make: Make) -> None:
        wsgi = 'WSGI_APPLICATION = "SITE.wsgi.application"\n'
        site = make({"settings.py": SETTINGS + wsgi + "DEBUG = True\n# the end"})
        site.set_up()
        settings = site["settings.py"]
        assert (
            wsgi + 'ASGI_APPLICATION = "SITE.asgi.application"\nDEBUG = True\n# the end\n\n\n# Streams are' in settings
        )
        assert settings.endswith('RELIABLE_CABLE = {\n    # "REDIS_URL": "redis://localhost:6379/0",\n}')

    def test_windows_line_ends_and_characters_are_kept(self, make: Make) -> None:
        text = ("# Größe\n" + SETTINGS).replace("\n", "\r\n")
        site = make({"settings.py": text, "asgi.py": ASGI.replace("\n", "\r\n")})
        site.set_up()
        for name in ("settings.py", "asgi.py"):
            assert site[name].count("\r\n") == site[name].count("\n") > 3
        assert site["settings.py"].startswith("# Größe\r\n")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("INSTALLED_APPS = get_apps()\n", "`INSTALLED_APPS` is neither a list nor a sum"),
            ("APPS = ()\nINSTALLED_APPS = APPS\n", "`APPS` is not a list"),
            ("if True:\n    " + SETTINGS, "`INSTALLED_APPS` is not assigned exactly once"),
            (SETTINGS + SETTINGS, "`INSTALLED_APPS` is not assigned exactly once"),
            (SETTINGS + "INSTALLED_APPS[0] = 'other'\n", "`INSTALLED_APPS` is not assigned exactly once"),
            ('INSTALLED_APPS = ["no.such.app"]\n', "`INSTALLED_APPS` has apps that are not in force"),
            (
                SETTINGS + "if False:\n    RELIABLE_CABLE = {}\n",
                "`RELIABLE_CABLE` is assigned here, but is not in force",
            ),
            ("DEBUG = True\n", "`INSTALLED_APPS` is assigned in no file"),
            ("INSTALLED_APPS = [\n", "the file cannot be parsed"),
        ],
    )
    def test_settings_that_are_not_understood_stay(self, make: Make, text: str, reason: str) -> None:
        site = make({"settings.py": text})
        output = site.set_up()
        assert site["settings.py"] == text
        assert reason in output
        assert '    INSTALLED_APPS = [\n        "daphne",\n        # … your apps\n        "channels",\n' in output
        assert '    ASGI_APPLICATION = "SITE.asgi.application"\n' in output

    def test_a_late_daphne_is_named(self, make: Make) -> None:
        apps = ("django.contrib.staticfiles", "daphne", "channels", "reliable_cable")
        assert 'Note: Move "daphne" to the beginning of INSTALLED_APPS.' in make(apps=apps).set_up()

    def test_what_the_settings_have_stays(self, make: Make, settings: Any) -> None:
        site = make(apps=("daphne.apps.DaphneConfig", "channels", "reliable_cable"))
        settings.ASGI_APPLICATION = f"{site.name}.asgi.application"
        settings.RELIABLE_CABLE = {}
        site.set_up()
        assert site["settings.py"] == SETTINGS


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
    def test_the_plain_application_gets_a_router(self, make: Make) -> None:
        site = make()
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
    def test_a_route_is_added(self, make: Make, before: str, after: str) -> None:
        site = make({"asgi.py": routed(before)})
        assert "Note" not in site.set_up()
        imports = "from django.urls import path\nfrom reliable_cable import CableConsumer\n"
        assert site["asgi.py"] == routed(after, imports)

    def test_missing_authentication_and_validators_of_origins_are_named(self, make: Make) -> None:
        site = make({"asgi.py": routed('"websocket": security.AllowedHostsOriginValidator(URLRouter([]))')})
        output = site.set_up()
        assert "Note: SITE/asgi.py has no AuthMiddlewareStack around the WebSocket routes." in output
        assert "Note: SITE/asgi.py has an AllowedHostsOriginValidator around the WebSocket routes." in output

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
            ("from os import path\n" + ASGI, "the name `path` is in use for something else than django.urls.path"),
            ("import os.path as path\n" + ASGI, "the name `path` is in use for something else than django.urls.path"),
            ("path = 'cable'\n" + ASGI, "the name `path` is in use for something else than django.urls.path"),
        ],
    )
    def test_applications_that_are_not_understood_stay(self, make: Make, text: str, reason: str) -> None:
        site = make({"asgi.py": text})
        output = site.set_up()
        assert site["asgi.py"] == text
        assert f"Not changed: SITE/asgi.py: {reason}" in output
        assert f'"websocket": AuthMiddlewareStack(URLRouter([{ROUTE}]))' in output

    @pytest.mark.parametrize(
        "routing",
        ["class AppConsumer(CableConsumer): ...\n", 'urls = [re_path(r"^cable/?$", AppConsumer.as_asgi())]\n'],
    )
    def test_a_cable_that_is_served_already_is_found(self, make: Make, routing: str) -> None:
        text = routed('"websocket": URLRouter(urls)', "from SITE.routing import urls\n")
        site = make({"asgi.py": text, "routing.py": routing})
        assert "Note: SITE/asgi.py stays as it is, because SITE/routing.py already names" in site.set_up()
        assert site["asgi.py"] == text

    def test_a_missing_asgi_module_gets_the_settings_of_wsgi(self, make: Make) -> None:
        wsgi = 'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "SITE.production")\n'
        site = make({"wsgi.py": wsgi})
        (site.folder / "asgi.py").unlink()
        assert "--- /dev/null\n+++ b/SITE/asgi.py" in site.set_up()
        assert wsgi in site["asgi.py"]
        assert f'"websocket": AuthMiddlewareStack(URLRouter([{ROUTE}])),\n' in site["asgi.py"]

    @pytest.mark.parametrize("wsgi", ["", None])
    def test_without_a_wsgi_module_that_names_settings_no_asgi_module_is_made(
        self, make: Make, wsgi: str | None
    ) -> None:
        site = make({} if wsgi is None else {"wsgi.py": wsgi})
        (site.folder / "asgi.py").unlink()
        assert "Not changed: " in site.set_up()
        assert not (site.folder / "asgi.py").exists()

    def test_without_the_paths_of_applications_it_says_so(self, make: Make, settings: Any) -> None:
        site = make()
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
    def test_imports_are_added(self, make: Make, before: str, after: str) -> None:
        site = make({"urls.py": before})
        site.set_up(example=True)
        assert site["urls.py"].startswith(after)


class TestExample:
    def test_the_route_comes_first_and_the_app_lies_beside_the_package(self, make: Make, tmp_path: Path) -> None:
        site = make({"urls.py": URLS.replace("[]", "[a] + b") + "urlpatterns += []\nurlpatterns = urlpatterns + c\n"})
        assert "open http://127.0.0.1:8000/cable-example/" in site.set_up(example=True)
        assert 'urlpatterns = [path("cable-example/", include("cable_example.urls")), a] + b\n' in site["urls.py"]
        names = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("cable_example/**/*.*")}
        assert {"cable_example/cable.py", "cable_example/static/cable_example/page.js"} <= names
        assert [name for name in names if name.endswith("-tpl")] == []

    def test_files_of_the_example_that_exist_stay(self, make: Make, tmp_path: Path) -> None:
        site = make()
        path = tmp_path / "cable_example" / "cable.py"
        path.parent.mkdir()
        path.write_text("# mine\n")
        output = site.set_up(example=True)
        assert path.read_text() == "# mine\n"
        assert "b/cable_example/views.py" in output
        assert "b/cable_example/cable.py" not in output

    def test_urls_that_are_not_understood_stay(self, make: Make, tmp_path: Path) -> None:
        text = "urlpatterns = patterns()\n"
        site = make({"urls.py": text})
        output = site.set_up(example=True)
        assert site["urls.py"] == text
        assert "Not changed: SITE/urls.py: `urlpatterns` does not begin with a list" in output
        assert '        path("cable-example/", include("cable_example.urls")),\n' in output
        assert (tmp_path / "cable_example/cable.py").exists()

    def test_urls_of_an_installed_package_stay(self, make: Make, settings: Any) -> None:
        site = make()
        settings.ROOT_URLCONF = "django.contrib.auth.urls"
        assert "django.contrib.auth.urls is not a Python file of this project" in site.set_up(example=True)

    def test_urls_in_a_package(self, make: Make, tmp_path: Path) -> None:
        site = make({"urls/__init__.py": URLS})
        (site.folder / "urls.py").unlink()
        site.set_up(example=True)
        assert "cable-example" in site["urls/__init__.py"]
        assert (tmp_path / "cable_example/cable.py").exists()

    def test_a_file_with_settings_and_urls_is_not_changed_twice(self, make: Make, settings: Any) -> None:
        site = make({"settings.py": SETTINGS + URLS})
        settings.ROOT_URLCONF = f"{site.name}.settings"
        output = site.set_up(example=True)
        assert "Not changed: SITE/settings.py: SITE/settings.py has several parts to change." in output
        assert "cable-example" not in site["settings.py"]


class TestAnswers:
    @pytest.mark.parametrize("answer", ["y", "YES ", "n", "", "yesterday", EOFError, KeyboardInterrupt])
    def test_only_a_yes_writes(self, make: Make, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
        def ask(prompt: str) -> str:
            if isinstance(answer, str):
                return answer
            raise answer

        monkeypatch.setattr("builtins.input", ask)
        site = make()
        output = site.set_up(yes=False)
        agreed = answer in ("y", "YES ")
        assert (site["asgi.py"] != ASGI) is ("Files written: 2." in output) is agreed

    def test_a_file_that_cannot_be_written_is_an_error(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(plan: plan_module.Plan) -> None:
            raise PermissionError("asgi.py is read-only")

        monkeypatch.setattr(plan_module.Plan, "apply", fail)
        with pytest.raises(CommandError, match=r"Not all changes were made: asgi\.py is read-only"):
            make().set_up()

    def test_a_file_that_was_changed_during_the_question_is_an_error(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = make()

        def ask(prompt: str) -> str:
            (site.folder / "settings.py").write_text("# new\n")
            return "y"

        monkeypatch.setattr("builtins.input", ask)
        with pytest.raises(CommandError, match=r"settings\.py was changed meanwhile\. Run the command again\."):
            site.set_up(yes=False)
        assert (site["settings.py"], site["asgi.py"]) == ("# new\n", ASGI)

    def test_a_dry_run_writes_nothing(self, make: Make, tmp_path: Path) -> None:
        site = make()
        assert "+++ b/cable_example/cable.py" in site.set_up(yes=False, dry_run=True, example=True)
        assert (site["asgi.py"], site["urls.py"], site["settings.py"]) == (ASGI, URLS, SETTINGS)
        assert not (tmp_path / "cable_example").exists()

    def test_without_the_example_only_two_files_are_changed(self, make: Make, tmp_path: Path) -> None:
        site = make()
        output = site.set_up()
        assert "Files written: 2." in output
        assert "cable-example" not in output
        assert not (tmp_path / "cable_example").exists()

    def test_without_libcst_the_error_names_the_extra(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.startswith("reliable_cable.setup.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "libcst", None)
        with pytest.raises(CommandError, match=r"pip install 'reliable_cable\[setup\]'"):
            make().set_up()
