"""`manage.py cable_setup` on projects of three versions of Django, and on layouts that cookiecutters make."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from django import get_version
from websockets.asyncio.client import connect

from tests.support import layouts
from tests.support.client import Client, identify
from tests.support.projects import Environments, Project, ProjectServer

pytestmark = pytest.mark.timeout(300)

Layout = Callable[[Path, Path], Project]
#: The version of Django in the environment of these tests, which needs no environment of its own.
HERE = ".".join(get_version().split(".")[:2])
EXAMPLE = identify("ExampleChannel")


@pytest.fixture
def stock(tmp_path: Path) -> Project:
    """A project as `django-admin startproject` makes it."""
    return layouts.stock(tmp_path / "project", Path(sys.executable))


@pytest.mark.parametrize(
    ("layout", "django"),
    [
        (layouts.stock, "5.2"),
        (layouts.stock, "6.0"),
        (layouts.stock, "6.1"),
        (layouts.package, HERE),
        (layouts.src, HERE),
        (layouts.channels, HERE),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
async def test_a_project_is_set_up(environments: Environments, tmp_path: Path, layout: Layout, django: str) -> None:
    project = layout(tmp_path / "project", environments.get(django))
    assert project.run("-c", "import django; print(django.__version__)").stdout.startswith(f"{django}.")
    output = project.set_up("--yes")
    assert "Not changed" not in output
    if layout is layouts.stock and django == HERE:
        # uvicorn and daphne import the application in this way, without the settings module in the environment.
        assert project.run("-c", "from mysite.asgi import application").returncode == 0
    project.manage("migrate", "--verbosity", "0")
    # Django also runs all system checks before the tests.
    assert re.search(r"Ran [1-9].*\n\nOK", project.manage("test", "cable_example"))
    files = project.files()
    assert "Nothing to change." in project.manage("cable_setup", "--yes")
    assert project.files() == files
    with ProjectServer(project, tmp_path) as server:
        await check_that_messages_arrive(server)
        if layout is layouts.channels:
            await check_that_the_other_consumer_works(server)
            assert "CSRF_TRUSTED_ORIGINS" in output  # the note about the validator of origins


async def check_that_messages_arrive(server: ProjectServer) -> None:
    origin = f"http://127.0.0.1:{server.port}"
    async with Client(server.url, origin=origin) as reader, Client(server.url, origin=origin) as writer:
        for client in (reader, writer):
            await client.subscribe(EXAMPLE)
        await writer.perform(EXAMPLE, "say", text="Hello & welcome")
        assert [message["text"] for message in await reader.messages(EXAMPLE, 1)] == ["Hello & welcome"]
    page = server.page("/cable-example/")
    assert "Hello &amp; welcome" in page.text
    script = re.search(r'src="([^"]+page[^"]*\.js)"', page.text)
    assert script is not None
    assert server.page(script[1]).status_code == 200


async def check_that_the_other_consumer_works(server: ProjectServer) -> None:
    url = f"ws://127.0.0.1:{server.port}/ws/echo/"
    async with connect(url, origin=f"http://127.0.0.1:{server.port}", proxy=None) as socket:  # type: ignore[arg-type]
        await socket.send("hi")
        assert await socket.recv() == "None: hi"


def test_nothing_is_written_without_a_yes(stock: Project) -> None:
    files = stock.files()
    for options, answer in (["--dry-run"], ""), ([], "n\n"), ([], ""):
        output = stock.set_up(*options, answer=answer)
        assert "+    'reliable_cable',\n" in output
        assert "b/cable_example/templates/cable_example/page.html\n" in output
        assert stock.files() == files
    stock.set_up(answer="y\n")
    assert stock.files() != files


def test_settings_that_are_not_understood_are_left_alone(stock: Project) -> None:
    path = stock.folder / "mysite/settings.py"
    text = path.read_text().replace("INSTALLED_APPS = [", "INSTALLED_APPS = list()\nINSTALLED_APPS += [")
    path.write_text(text)
    files = stock.files()
    output = stock.set_up("--yes")
    assert files.items() <= stock.files().items()
    assert "Not changed: mysite/settings.py: `INSTALLED_APPS` is neither a list nor a sum of lists" in output
    assert '        "daphne",\n        # … your apps\n        "channels",\n' in output
    assert "RELIABLE_CABLE = {" in output
    apps = ["channels", "reliable_cable", "cable_example"]
    path.write_text(f"{text}\nINSTALLED_APPS = ['daphne', *INSTALLED_APPS, *{apps}]\n")
    stock.set_up("--yes")
    assert "cable_example.urls" in (stock.folder / "mysite/urls.py").read_text()
    assert "CableConsumer" in (stock.folder / "mysite/asgi.py").read_text()


def test_without_libcst_the_error_names_the_extra(stock: Project) -> None:
    (stock.folder / "libcst.py").write_text("raise ModuleNotFoundError('no libcst', name='libcst')\n")
    files = stock.files()
    done = stock.run("-m", "reliable_cable.setup", "--yes")
    assert done.returncode == 1
    assert "The Python package libcst is not installed: pip install 'reliable_cable[setup]'" in done.stdout
    assert "Traceback" not in done.stdout
    assert stock.files() == files


def test_the_settings_can_be_named(stock: Project) -> None:
    stock.write({"mysite/other.py": "from .settings import *\n\nROOT_URLCONF = 'mysite.other_urls'\n"})
    stock.write({"mysite/other_urls.py": "urlpatterns = []\n"})
    output = stock.set_up("--dry-run", "--settings", "mysite.other")
    assert "+++ b/mysite/other_urls.py" in output
    assert "+++ b/mysite/settings.py" in output


def test_without_manage_py_the_error_says_where_to_run_it(tmp_path: Path) -> None:
    done = Project(tmp_path, Path(sys.executable)).run("-m", "reliable_cable.setup")
    assert done.returncode == 1
    assert done.stdout == "There is no manage.py here. Change to the folder of your project's manage.py.\n"
