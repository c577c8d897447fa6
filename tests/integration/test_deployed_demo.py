"""Tests of the demo as demo_project/deploy runs it: all processes, DEBUG off, PostgreSQL, Redis and nginx."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.node import require_node
from tests.support.client import Client, identify, unique
from tests.support.nginx import DEPLOY, DeployedServer, Nginx, procfile
from tests.support.postgres import find_postgres, running_postgres
from tests.support.recovering import RecoveringClient
from tests.support.redis import RedisServer
from tests.support.run_reader import RunReader
from tests.support.server import LOCAL, PATIENCE, ROOT, Kind, environment

PASSWORD = "a password of this deployment"

pytestmark = [pytest.mark.nginx, pytest.mark.node, pytest.mark.postgres, pytest.mark.redis]


class DemoServer(DeployedServer):
    """A server that runs the demo."""

    def __init__(self, kind: Kind, folder: Path, variables: Mapping[str, str]) -> None:
        super().__init__(kind, folder, folder, shared=True)
        self.environment = dict(variables)

    def _answers(self) -> bool:
        return httpx.get(f"http://127.0.0.1:{self.port}/login/", **LOCAL).is_success


@contextmanager
def worker(folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Run the Celery worker of the Procfile."""
    with (folder / "worker.log").open("wb") as log:
        command = [sys.executable, "-m", *procfile()["worker"]]
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def release(variables: Mapping[str, str]) -> None:
    """Run the commands of the service `release` in compose.yaml."""
    found = re.search(r"^    command: sh -c (.*)$", (DEPLOY / "compose.yaml").read_text(), re.MULTILINE)
    assert found
    (script,) = shlex.split(found[1])
    script = script.replace("python ", f"{shlex.quote(sys.executable)} ")
    subprocess.run(script, shell=True, cwd=ROOT, env=variables, check=True, timeout=PATIENCE * 4, capture_output=True)  # noqa: S602 - as Compose does


class Deployment:
    """The running deployment.

    Args:
        stack: stops all processes when it is closed.
        folder: the folder for logs and data.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        binaries = find_postgres()
        assert binaries is not None
        socket = stack.enter_context(running_postgres(binaries))
        options = [shlex.split(line) for line in (DEPLOY / "redis.conf").read_text().splitlines() if line[:1].isalpha()]
        redis = stack.enter_context(RedisServer(folder / "redis", options=dict(options)))
        variables = {
            **environment(folder),
            "DJANGO_SETTINGS_MODULE": "demo_project.settings",
            "DEBUG": "0",
            "SECRET_KEY": "a secret",
            "DEMO_PASSWORD": PASSWORD,
            "DATABASE_URL": f"postgres://postgres@{socket.replace('/', '%2F')}/postgres",
            "REDIS_URL": redis.url,
            "CELERY_BROKER_URL": redis.url.removesuffix("0") + "1",  # as in compose.yaml
            "DEMO_TOKEN_DELAY": "0.05",
        }
        self.servers = [DemoServer(kind, folder, variables) for kind in ("daphne", "uvicorn")]
        self.nginx = Nginx(self.servers)
        variables["STATIC_ROOT"] = str(self.nginx.static)
        release(variables)
        stack.enter_context(worker(folder, variables))
        for server in self.servers:
            stack.enter_context(server)
        stack.enter_context(self.nginx)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The deployment that these tests share."""
    require_node()  # Node makes the bundle of the client
    with ExitStack() as stack:
        yield Deployment(stack, tmp_path_factory.mktemp("deployment"))


@contextmanager
def signed_in(base: str, username: str = "carol", home: str = "/") -> Iterator[httpx.Client]:
    """Log a user in, and yield the HTTP client. Check that the login redirects to the path `home`."""
    with httpx.Client(base_url=base, **LOCAL, headers={"Origin": base}) as browser:
        page = browser.get("/login/")
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
        assert token
        form = {"csrfmiddlewaretoken": token[1], "username": username, "password": PASSWORD}
        assert browser.post("/login/", data=form).headers["Location"] == home
        yield browser


def test_nginx_serves_pages_and_static_files(deployment: Deployment) -> None:
    with signed_in(deployment.nginx.base) as browser:
        page = browser.get("/rooms/lobby/")
        assert page.is_success
        paths = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
        assert any(path.startswith("/static/reliable_cable/") for path in paths)
        for path in paths:
            file = browser.get(path)
            assert file.is_success, path
            assert file.headers["Server"] == "nginx", "nginx serves static files without the servers"
            assert "Cache-Control" in file.headers


def test_other_origins_are_refused_behind_the_proxy(deployment: Deployment) -> None:
    with httpx.Client(base_url=deployment.nginx.base, **LOCAL) as browser:
        token = browser.get("/login/").cookies["csrftoken"]
        form = {"csrfmiddlewaretoken": token, "username": "carol", "password": PASSWORD}
        assert browser.post("/login/", data=form, headers={"Origin": "http://127.0.0.1:1"}).status_code == 403
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Origin": "http://elsewhere.example"}
        assert browser.get("/cable", headers=headers | key).status_code == 403


def test_nobody_can_log_in_with_a_known_password_or_as_an_administrator(deployment: Deployment) -> None:
    with httpx.Client(base_url=deployment.nginx.base, **LOCAL) as browser:
        page = browser.get("/login/")
        assert PASSWORD not in page.text
        assert "login-alice" not in page.text
        form = {"csrfmiddlewaretoken": browser.cookies["csrftoken"], "username": "alice", "password": "reliable"}
        headers = {"Origin": deployment.nginx.base}
        assert "do not match" in browser.post("/login/", data=form, headers=headers).text
    with signed_in(deployment.nginx.base, "alice") as browser:
        assert browser.get("/admin/").headers["Location"].startswith("/admin/login/")


def cookie_of(deployment: Deployment, username: str) -> str:
    """Log a user in, and return the value of the header `Cookie`."""
    with signed_in(deployment.nginx.base, username) as browser:
        return f"sessionid={browser.cookies['sessionid']}"


def names(client: RecoveringClient, identifier: str) -> set[str]:
    """Return the names of the members that a client knows."""
    return {info["name"] for info in (client.members[identifier] or {}).values()}


async def test_both_servers_know_the_members_of_a_room_and_restore_sessions(deployment: Deployment) -> None:
    daphne, uvicorn = deployment.servers
    cookies = [cookie_of(deployment, username) for username in ("alice", "bob")]
    room = identify("ChatChannel", room_id=1)
    async with RecoveringClient(daphne.url, cookie=cookies[0]) as alice:
        await alice.subscribe(room)
        await alice.watch(room)
        async with Client(uvicorn.url, cookie=cookies[1]) as bob:
            await bob.subscribe(room)
            await alice.wait_for(lambda: names(alice, room) == {"alice", "bob"})
            await bob.send("whisper", room, data={"typing": True})
            await alice.wait_for_messages(room, 1)
            assert alice.received[room] == [{"typing": True}]
            await bob.cut()
        async with Client(daphne.url, cookie=cookies[1], sid=bob.sid) as bob:
            assert bob.welcome["restored_ids"] == [room]
            await bob.send("history", room, history={"since": alice.since})
            await bob.perform(room, "speak", text="here again", client_id=unique("message"))
            await alice.wait_for_messages(room, 2)
            assert names(alice, room) == {"alice", "bob"}


async def test_only_news_can_be_read_without_a_signature(deployment: Deployment) -> None:
    """Carol may not enter the room of Alice and Bob, and a conversation with the assistant belongs to one user."""
    async with Client(deployment.nginx.url, cookie=cookie_of(deployment, "carol")) as carol:
        room = identify("ChatChannel", room_id=3)
        await carol.send("subscribe", room)
        await carol.expect({"type": "reject_subscription", "identifier": room})
        for stream in ("ChatChannel:chat.room:3", "ChatChannel:chat.room:1", "assistant:1", "run:1"):
            stolen = identify("$pubsub", stream_name=stream)
            await carol.send("subscribe", stolen, history={"since": 0}, presence={"id": "1", "info": {}})
            await carol.expect({"type": "reject_subscription", "identifier": stolen})
        await carol.subscribe(identify("$pubsub", stream_name="news:public"))


async def test_an_answer_continues_while_all_servers_are_killed(deployment: Deployment) -> None:
    # A Celery worker writes the answer.
    with signed_in(deployment.nginx.base) as browser:
        page = browser.get("/assistant/").text
        cookie = f"sessionid={browser.cookies['sessionid']}"
    found = re.search(r'data-conversation="(\d+)"', page)
    assert found
    conversation = identify("AssistantChannel", conversation=int(found[1]))
    reader = RunReader()
    async with RecoveringClient(deployment.nginx.url, cookie=cookie) as client:
        await client.subscribe(conversation)
        await client.perform(conversation, "ask", prompt="What is an offset?")
        await client.wait_for_messages(conversation, 1)
        run = identify("RunChannel", id=client.received[conversation][0]["run"])
        await client.subscribe(run)
        await client.wait_for_messages(run, 2)
        for server in deployment.servers:
            await server.restart()
        received = client.received[run]
        await client.wait_for(lambda: received[-1]["event"] == "complete")
        assert client.connects > 1
    for event in received:
        reader.add(event)
    assert (reader.status, reader.text.split()[-1]) == ("completed", "tired.")
    assert "**offset**" in reader.text
