"""`manage.py cable_setup` changes many forms of settings and URLs. tests/integration/test_setup.py uses projects."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError

from reliable_cable.setup import plan as plan_module
from tests.unit.sites import ASGI, SETTINGS, URLS, MakeSite


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
    def test_apps_are_added_in_the_style_of_the_list(self, make_site: MakeSite, before: str, after: str) -> None:
        site = make_site({"settings.py": f"INSTALLED_APPS: list[str] = {before}\n"})
        site.set_up()
        assert site["settings.py"].startswith(f"INSTALLED_APPS: list[str] = {after}\nASGI_APPLICATION = ")

    def test_apps_are_added_to_lists_that_are_summed(self, make_site: MakeSite) -> None:
        lists = 'DJANGO_APPS = ["django.contrib.auth"]\nTHIRD_PARTY_APPS = []\nOWN_APPS = []\n'
        total = "INSTALLED_APPS = DJANGO_APPS + THIRD_PARTY_APPS + OWN_APPS\n"
        site = make_site({"settings.py": lists + total})
        site.set_up(example=True)
        assert site["settings.py"].startswith(
            'DJANGO_APPS = ["daphne", "django.contrib.auth"]\nTHIRD_PARTY_APPS = ["channels", "reliable_cable"]\n'
            f'OWN_APPS = ["cable_example"]\n{total}'
        )

    def test_the_file_that_others_import_is_changed(self, make_site: MakeSite) -> None:
        files = {
            "settings.py": "from SITE.base import *\n\nINSTALLED_APPS += []\nINSTALLED_APPS = [*INSTALLED_APPS]\n",
            "base.py": "from .common import *\n",
            "common.py": "from datetime import *\nfrom . import *\n" + SETTINGS,
        }
        site = make_site(files)
        site.set_up()
        assert '"reliable_cable"' in site["common.py"]
        assert {name: site[name] for name in ("settings.py", "base.py")} == {
            k: files[k] for k in ("settings.py", "base.py")
        }

    def test_the_application_follows_that_of_wsgi_and_the_comment_at_the_end_stays(self, make_site: MakeSite) -> None:
        wsgi = 'WSGI_APPLICATION = "SITE.wsgi.application"\n'
        site = make_site({"settings.py": SETTINGS + wsgi + "DEBUG = True\n# the end"})
        site.set_up()
        settings = site["settings.py"]
        assert (
            wsgi + 'ASGI_APPLICATION = "SITE.asgi.application"\nDEBUG = True\n# the end\n\n\n# Streams and members are'
            in settings
        )
        assert settings.endswith('RELIABLE_CABLE = {\n    # "REDIS_URL": "redis://localhost:6379/0",\n}')

    def test_windows_line_ends_and_characters_are_kept(self, make_site: MakeSite) -> None:
        text = ("# Größe\n" + SETTINGS).replace("\n", "\r\n")
        site = make_site({"settings.py": text, "asgi.py": ASGI.replace("\n", "\r\n")})
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
            ('INSTALLED_APPS = ["no.such.app"]\n', "`INSTALLED_APPS` has apps that are not installed"),
            (
                SETTINGS + "if False:\n    RELIABLE_CABLE = {}\n",
                "`RELIABLE_CABLE` is assigned here, but the loaded settings do not have it",
            ),
            ("DEBUG = True\n", "`INSTALLED_APPS` is assigned in no file"),
            ("INSTALLED_APPS = [\n", "the file cannot be parsed"),
        ],
    )
    def test_settings_that_are_not_understood_stay(self, make_site: MakeSite, text: str, reason: str) -> None:
        site = make_site({"settings.py": text})
        output = site.set_up()
        assert site["settings.py"] == text
        assert reason in output
        assert "Write there, and run this command again:" in output
        assert '    INSTALLED_APPS = [\n        "daphne",\n        # … your apps\n        "channels",\n' in output
        assert '    ASGI_APPLICATION = "SITE.asgi.application"\n' in output

    def test_while_apps_are_missing_no_other_file_is_changed(self, make_site: MakeSite, tmp_path: Path) -> None:
        """Without the apps, an asgi.py with the route cannot be imported."""
        site = make_site({"settings.py": "INSTALLED_APPS = ()\n"})
        assert "There is nothing that this command can change." in site.set_up()
        assert 'Write the code that is shown above, after "Not changed".' in site.set_up(example=True)
        assert (site["asgi.py"], site["urls.py"]) == (ASGI, URLS)
        assert (tmp_path / "cable_example/cable.py").exists()  # the output tells the developer to add this app

    def test_settings_without_which_the_cable_works_do_not_prevent_the_rest(
        self, make_site: MakeSite, settings: Any
    ) -> None:
        text = SETTINGS + "if False:\n    RELIABLE_CABLE = {}\n"
        site = make_site({"settings.py": text}, apps=("daphne", "channels", "reliable_cable", "django.contrib.auth"))
        output = site.set_up()
        assert "`RELIABLE_CABLE` is assigned here, but the loaded settings do not have it. Write there:" in output
        assert "CableConsumer" in site["asgi.py"]

    def test_settings_without_a_module(self, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
        """A project in one file calls `settings.configure()`, and has no settings module."""
        site = make_site()
        monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
        reason = "the settings (DJANGO_SETTINGS_MODULE): the environment variable is not set."
        assert f"Not changed: {reason} Write there, and run this command again:" in site.set_up()

    def test_a_late_daphne_is_named(self, make_site: MakeSite) -> None:
        apps = ("django.contrib.staticfiles", "daphne", "channels", "reliable_cable")
        assert 'Note: Move "daphne" to the beginning of INSTALLED_APPS.' in make_site(apps=apps).set_up()

    def test_what_the_settings_have_stays(self, make_site: MakeSite, settings: Any) -> None:
        site = make_site(apps=("daphne.apps.DaphneConfig", "channels", "reliable_cable"))
        settings.ASGI_APPLICATION = f"{site.name}.asgi.application"
        settings.RELIABLE_CABLE = {}
        site.set_up()
        assert site["settings.py"] == SETTINGS


class TestExample:
    def test_the_route_comes_first_and_the_app_lies_beside_the_package(
        self, make_site: MakeSite, tmp_path: Path
    ) -> None:
        site = make_site(
            {"urls.py": URLS.replace("[]", "[a] + b") + "urlpatterns += []\nurlpatterns = urlpatterns + c\n"}
        )
        assert "open http://127.0.0.1:8000/cable-example/" in site.set_up(example=True)
        assert 'urlpatterns = [path("cable-example/", include("cable_example.urls")), a] + b\n' in site["urls.py"]
        names = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("cable_example/**/*.*")}
        assert {"cable_example/cable.py", "cable_example/static/cable_example/page.js"} <= names
        assert [name for name in names if name.endswith("-tpl")] == []

    def test_files_of_the_example_that_exist_stay(self, make_site: MakeSite, tmp_path: Path) -> None:
        site = make_site()
        path = tmp_path / "cable_example" / "cable.py"
        path.parent.mkdir()
        path.write_text("# mine\n")
        output = site.set_up(example=True)
        assert path.read_text() == "# mine\n"
        assert "b/cable_example/views.py" in output
        assert "b/cable_example/cable.py" not in output

    def test_urls_that_are_not_understood_stay(self, make_site: MakeSite, tmp_path: Path) -> None:
        text = "urlpatterns = patterns()\n"
        site = make_site({"urls.py": text})
        output = site.set_up(example=True)
        assert site["urls.py"] == text
        assert "Not changed: SITE/urls.py: `urlpatterns` does not begin with a list" in output
        assert '        path("cable-example/", include("cable_example.urls")),\n' in output
        assert (tmp_path / "cable_example/cable.py").exists()

    def test_urls_of_an_installed_package_stay(self, make_site: MakeSite, settings: Any) -> None:
        site = make_site()
        settings.ROOT_URLCONF = "django.contrib.auth.urls"
        assert "django.contrib.auth.urls is not a Python file of this project" in site.set_up(example=True)

    def test_without_the_setting_of_the_urls_it_says_so(self, make_site: MakeSite, settings: Any) -> None:
        site = make_site()
        del settings.ROOT_URLCONF
        settings.WSGI_APPLICATION = None
        output = site.set_up(example=True)
        assert "Not changed: the URLs (ROOT_URLCONF): the setting is missing. Write there:" in output
        assert "Not changed: the ASGI application (asgi.py): neither ASGI_APPLICATION" in output

    def test_urls_in_a_package(self, make_site: MakeSite, tmp_path: Path) -> None:
        site = make_site({"urls/__init__.py": URLS})
        (site.folder / "urls.py").unlink()
        site.set_up(example=True)
        assert "cable-example" in site["urls/__init__.py"]
        assert (tmp_path / "cable_example/cable.py").exists()

    def test_a_file_with_settings_and_urls_is_not_changed_twice(self, make_site: MakeSite, settings: Any) -> None:
        site = make_site({"settings.py": SETTINGS + URLS})
        settings.ROOT_URLCONF = f"{site.name}.settings"
        output = site.set_up(example=True)
        assert "Not changed: SITE/settings.py: SITE/settings.py has several parts to change." in output
        assert "cable-example" not in site["settings.py"]


class TestAnswers:
    @pytest.mark.parametrize("answer", ["y", "YES ", "n", "", "yesterday", EOFError, KeyboardInterrupt])
    def test_only_a_yes_writes(self, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
        def ask(prompt: str) -> str:
            if isinstance(answer, str):
                return answer
            raise answer

        monkeypatch.setattr("builtins.input", ask)
        site = make_site()
        output = site.set_up(yes=False)
        agreed = answer in ("y", "YES ")
        assert (site["asgi.py"] != ASGI) is ("Files written: 2." in output) is agreed

    def test_a_file_that_cannot_be_written_is_an_error(
        self, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(plan: plan_module.Plan) -> None:
            raise PermissionError("asgi.py is read-only")

        monkeypatch.setattr(plan_module.Plan, "apply", fail)
        with pytest.raises(CommandError, match=r"Not all changes were made: asgi\.py is read-only"):
            make_site().set_up()

    def test_a_file_that_was_changed_during_the_question_is_an_error(
        self, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = make_site()

        def ask(prompt: str) -> str:
            (site.folder / "settings.py").write_text("# new\n")
            return "y"

        monkeypatch.setattr("builtins.input", ask)
        with pytest.raises(
            CommandError, match=r"settings\.py has changed since the plan was made\. Run the command again\."
        ):
            site.set_up(yes=False)
        assert (site["settings.py"], site["asgi.py"]) == ("# new\n", ASGI)

    def test_a_dry_run_writes_nothing(self, make_site: MakeSite, tmp_path: Path) -> None:
        site = make_site()
        assert "+++ b/cable_example/cable.py" in site.set_up(yes=False, dry_run=True, example=True)
        assert (site["asgi.py"], site["urls.py"], site["settings.py"]) == (ASGI, URLS, SETTINGS)
        assert not (tmp_path / "cable_example").exists()

    def test_without_the_example_only_two_files_are_changed(self, make_site: MakeSite, tmp_path: Path) -> None:
        site = make_site()
        output = site.set_up()
        assert "Files written: 2." in output
        assert "cable-example" not in output
        assert not (tmp_path / "cable_example").exists()

    def test_without_libcst_the_error_names_the_extra(
        self, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.startswith("reliable_cable.setup.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "libcst", None)
        with pytest.raises(CommandError, match=r"pip install 'reliable_cable\[setup\]'"):
            make_site().set_up()
