"""Runs the deployment in demo_project/deploy/anycable without Docker: Django, its RPC server, anycable-go and nginx."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration.test_deployed_demo import PASSWORD, signed_in
from tests.support.anycable import QUIET, find_anycable
from tests.support.client import Client, identify
from tests.support.nginx import DEPLOY, PREFIX, find_nginx, replaced
from tests.support.process import wait_until_listening
from tests.support.redis import RedisServer
from tests.support.server import LOCAL, PATIENCE, ROOT, environment, free_port

pytestmark = [pytest.mark.anycable, pytest.mark.nginx, pytest.mark.node, pytest.mark.redis]

FOLDER = DEPLOY / "anycable"
PROCFILE = dict(line.split(": ", 1) for line in (FOLDER / "Procfile").read_text().splitlines())


class Deployment:
    """The running deployment. Its ports replace those of the Procfile.

    Args:
        stack: stops all processes when it is closed.
        folder: the folder for logs and data, which the workers of nginx can read.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.ports = {number: free_port() for number in ("8001", "8002", "50051", "8080")}
        redis = stack.enter_context(RedisServer(folder / "redis"))
        self.variables = {
            **environment(folder / "db.sqlite3"),
            **QUIET,
            "DJANGO_SETTINGS_MODULE": "demo_project.settings",
            "DEBUG": "0",
            "SECRET_KEY": "a secret",
            "ANYCABLE_SECRET": "another secret",
            "DEMO_PASSWORD": PASSWORD,
            "DEMO_DATABASE": str(folder / "db.sqlite3"),
            "REDIS_URL": redis.url,
            "STATIC_ROOT": str(folder / "run" / "static"),
        }
        prepare = [sys.executable, "manage.py", "demo", "--prepare-only"]
        subprocess.run(prepare, cwd=ROOT, env=self.variables, check=True, timeout=PATIENCE * 4, capture_output=True)
        for name in ("web", "anycable", "ws"):
            self._start(name, {"python": sys.executable, "anycable-go": str(find_anycable())})
        (folder / "run").mkdir(exist_ok=True)
        (folder / "anycable").mkdir()
        conf = self._with_ports((FOLDER / "nginx.conf").read_text().replace("listen 8080;", "listen 127.0.0.1:8080;"))
        (folder / "anycable" / "nginx.conf").write_text(conf)
        (folder / "nginx.log").touch()
        if os.getuid() == 0:
            subprocess.run(["chown", "-R", "nobody", str(folder / "run"), str(folder / "nginx.log")], check=True)
        self._start("nginx", {"nginx": str(find_nginx())}, user="nobody" if os.getuid() == 0 else None)

    @property
    def base(self) -> str:
        """The URL of the pages."""
        return f"http://127.0.0.1:{self.ports['8080']}"

    @property
    def url(self) -> str:
        """The WebSocket URL, through nginx."""
        return f"ws://127.0.0.1:{self.ports['8080']}/cable"

    def _with_ports(self, text: str) -> str:
        for number, port in self.ports.items():
            text = re.sub(rf"\b{number}\b", str(port), text)
        return text

    def _start(self, name: str, programs: Mapping[str, str], user: str | None = None) -> None:
        """Start a command of the Procfile, and wait until something listens on its port."""
        text = PROCFILE[name]
        if name == "nginx":
            text = replaced(text, PREFIX, str(self._folder / "run"))
        program, *words = shlex.split(self._with_ports(text))
        log = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [programs[program], *words], cwd=ROOT, env=self.variables, stdout=log, stderr=log, user=user
        )
        self._stack.callback(process.wait, PATIENCE)
        self._stack.callback(process.terminate)
        number = {"web": "8001", "anycable": "50051", "ws": "8002", "nginx": "8080"}[name]
        assert wait_until_listening(process, self.ports[number]), (self._folder / f"{name}.log").read_text()


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that all users can read. The temporary folders of pytest can be read only by their owner."""
    folder = Path(tempfile.mkdtemp(prefix="cable-anycable-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with open_folder() as folder, ExitStack() as stack:
        yield Deployment(stack, folder)


async def test_broadcasts_of_a_page_reach_channels_and_signed_streams(deployment: Deployment) -> None:
    with signed_in(deployment.base, home="/migrations/") as browser:
        page = browser.get("/migrations/")
        assert page.is_success
        signed = re.search(r'data-stream="([^"]+)"', page.text)
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)
        assert signed
        assert token
        assert browser.get("/rooms/lobby/").status_code == 404
        cookie = f"sessionid={browser.cookies['sessionid']}"
        async with Client(deployment.url, cookie=cookie, origin=deployment.base) as carol:
            assert set(carol.welcome) == {"type", "sid"}
            channel = await carol.subscribe(identify("NewsChannel", topic="consumer"))
            stream = await carol.subscribe(identify("$pubsub", signed_stream_name=signed[1]))
            wrong = identify("NewsChannel", topic="1")
            await carol.send("subscribe", wrong)
            await carol.expect({"type": "reject_subscription", "identifier": wrong})
            for topic, identifier in (("consumer", channel), ("signed", stream)):
                form = {"csrfmiddlewaretoken": token[1]}
                assert browser.post(f"/migrations/{topic}/broadcast/", data=form).status_code == 204
                text = {"text": "Hello from carol"}
                await carol.expect({"identifier": identifier, "message": text, "offset": 1})


async def test_pages_of_other_sites_and_calls_from_outside_are_refused(deployment: Deployment) -> None:
    client = Client(deployment.url, origin="http://elsewhere.example")
    await client.open()
    try:
        await client.expect({"type": "disconnect", "reason": "unauthorized"})
    finally:
        await client.close()
    async with httpx.AsyncClient(**LOCAL) as http:
        assert (await http.post(f"{deployment.base}/_anycable/connect")).status_code == 404
