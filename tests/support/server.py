"""Server processes that run the project in tests/integration/project."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from tests.support.forks import start
from tests.support.process import RestartableProcess

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "tests.integration.project"
#: The kinds of servers. "compressing" is uvicorn, started by `cable_serve --compress`.
Kind = Literal["daphne", "uvicorn", "compressing"]

#: How long, in seconds, a server may take to start, to stop, or to answer a request.
PATIENCE = 30.0
#: Options of httpx for servers on this machine. With `verify`, each client would read all certificates, which takes
#: 17 ms of CPU time.
LOCAL: Mapping[str, Any] = {"trust_env": False, "verify": False, "timeout": PATIENCE}
#: Removes daphne from the apps of processes that do not run it. Importing daphne and Twisted takes 0.25 s of CPU time.
WITHOUT_DAPHNE = {"CABLE_TEST_SERVER_APPS": "[]"}
#: The ports for servers. Kernels use those from 32,768 on for outgoing connections, so a server can restart on the same
#: port. The ports between are for servers that need a second port, which is 10,000 higher (old Redis Clusters).
PORTS = range(18_000, 28_000)
#: The number of test processes of one user that can run at the same time. Each has its own share of the ports.
SHARES = 100


@cache
def _own_ports() -> Iterator[int]:
    """Return the ports of this process, in an endless cycle. No other test process uses them while this one runs."""
    for share in random.sample(range(SHARES), SHARES):
        path = Path(tempfile.gettempdir(), f"cable-test-ports-{os.getuid()}-{share}")
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            # The system releases the lock when the process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return cycle(PORTS[share::SHARES])
    raise RuntimeError(f"{SHARES} other test processes use the ports from {PORTS.start} to {PORTS.stop - 1}")


def free_port() -> int:
    """Return a port on which no process listens, and that no other test process uses while this one runs."""
    for port in islice(_own_ports(), len(PORTS) // SHARES):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("All ports of this test process are used")


def environment(database: Path, settings: Mapping[str, Any] | None = None, **variables: str) -> dict[str, str]:
    """Return the environment variables of a process of the project.

    Args:
        database: the path of the SQLite file.
        settings: keys of `RELIABLE_CABLE` that replace those of the project.
        variables: additional environment variables.
    """
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": f"{PROJECT}.settings",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "CABLE_TEST_DATABASE": str(database),
        "RELIABLE_CABLE": json.dumps(dict(settings or {})),
        **variables,
    }


def make_database(folder: Path, **variables: str) -> Path:
    """Create an SQLite file, apply all migrations, and return its path.

    Args:
        folder: the folder for the file.
        variables: additional environment variables. If they name a PostgreSQL server, it is migrated in place of the
            file, which is then empty.
    """
    path = folder / "migrated.sqlite3"
    command = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
    variables = WITHOUT_DAPHNE | variables
    with (folder / "migrate.log").open("wb") as log:
        output = log.fileno()
        process = start(command, cwd=ROOT, env=environment(path, None, **variables), stdout=output, stderr=output)
        assert process.wait(PATIENCE * 2) == 0, (folder / "migrate.log").read_text()
    path.touch()
    return path


class Server(RestartableProcess):
    """A server process. Use it as a context manager, which starts and kills it.

    Args:
        kind: the kind of the server.
        folder: the folder for the database and the log.
        template: a migrated database, which is copied.
        settings: keys of `RELIABLE_CABLE` that replace those of the project.
        shared: use the template itself, so that several servers share it.
        variables: additional environment variables.
    """

    def __init__(
        self,
        kind: Kind,
        folder: Path,
        template: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        shared: bool = False,
        **variables: str,
    ) -> None:
        super().__init__(folder / f"{kind}.log")
        self.kind = kind
        self.port = 0
        #: The folder in which the process is started.
        self.directory = ROOT
        self.database = template if shared else folder / f"{kind}.sqlite3"
        if not shared:
            shutil.copy(template, self.database)
        if kind != "daphne":
            variables = WITHOUT_DAPHNE | variables
        self.environment = environment(self.database, settings, **variables)
        # With Redis, servers are started by `cable_serve`. Without Redis, they are started by their own commands. In
        # this way, both ways of starting are tested.
        self.by_cable_serve = "REDIS_URL" in (settings or {})

    # -- the process --------------------------------------------------------------------------------------------------

    @property
    def rss(self) -> int:
        """The resident memory of the process, in bytes."""
        # The file is read if it exists: tests read the memory in a loop, and starting `ps` takes 10 ms of CPU time.
        with contextlib.suppress(FileNotFoundError):  # only Linux has the file
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        text = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], check=True, capture_output=True).stdout
        return int(text) * 1024

    @property
    def url(self) -> str:
        """The WebSocket URL of the server."""
        return f"ws://127.0.0.1:{self.port}/cable"

    def start(self) -> None:
        """Start the process and wait until it answers. A restarted server keeps its port."""
        chosen = self.port
        for _ in range(5):
            self.port = chosen or free_port()
            with self._log.open("ab") as log:
                output = log.fileno()
                command, folder = self._command(), self.directory
                self._process = start(command, cwd=folder, env=self.environment, stdout=output, stderr=output)
            if self._wait_until_ready():
                return
            self.kill()
            if "in use" not in self.log:
                break  # another port would not help
        raise RuntimeError(f"{self.kind} did not start:\n{self.log}")

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    async def stopped(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, PATIENCE)

    async def terminate(self) -> int:
        """Stop the process with SIGTERM, wait until it has ended, and return its exit code."""
        self.signal()
        return await self.stopped()

    async def restart(self) -> None:
        """Kill the process if it is running, and start it again with the same port and database."""
        self.kill()
        await asyncio.to_thread(self.start)

    def _command(self) -> list[str]:
        application = f"{PROJECT}.asgi:application"
        if self.by_cable_serve or self.kind == "compressing":
            options = ["--compress"] if self.kind == "compressing" else ["--server", self.kind]
            return [sys.executable, "-m", "django", "cable_serve", *options, f"127.0.0.1:{self.port}"]
        if self.kind == "daphne":
            return [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(self.port), application]
        return [
            *[sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(self.port), "--lifespan", "off"],
            *["--no-access-log", application],
        ]

    def _wait_until_ready(self) -> bool:
        deadline = time.monotonic() + PATIENCE
        while self.alive and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                # Another process may have accepted this connection. Then this server could not listen, and has ended.
                with contextlib.suppress(httpx.TransportError):
                    return self._answers()
            time.sleep(0.02)
        return False

    def _answers(self) -> bool:
        """Send a request, and return whether the server answers it without an error."""
        return self._request("call", json={"call": "position", "args": ["ready"]}).is_success

    # -- requests -----------------------------------------------------------------------------------------------------

    async def call(self, name: str, *args: Any, socket_id: str = "", **kwargs: Any) -> Any:
        """Make a call (tests/integration/project/calls.py) inside the server process.

        Args:
            name: the name of the call.
            args: the positional arguments of the call.
            socket_id: the header `X-Socket-ID` of the request that makes the call.
            kwargs: the keyword arguments of the call.
        """
        headers = {"X-Socket-ID": socket_id} if socket_id else {}
        request = {"call": name, "args": args, "kwargs": kwargs}
        response = await asyncio.to_thread(self._request, "call", json=request, headers=headers)
        return _result(response.json())

    async def sign_in(self, username: str, *, cookie: str = "", **data: Any) -> str:
        """Log in a user, creating the user if necessary. Return the header `Cookie` of the session.

        Args:
            username: the name of the user.
            cookie: the header `Cookie` of the browser.
            data: more fields of the form, for example `expiry`.
        """
        return await self._new_cookie("sign-in", cookie, data={"username": username, **data})

    async def change_password(self, cookie: str) -> str:
        """Change the password of the user with this `Cookie` header. Return the new header of that browser."""
        return await self._new_cookie("change-password", cookie)

    async def _new_cookie(self, path: str, cookie: str, **options: Any) -> str:
        headers = {"Cookie": cookie} if cookie else {}
        response = await asyncio.to_thread(self._request, path, headers=headers, **options)
        return f"sessionid={response.cookies['sessionid']}"

    async def sign_out(self, cookie: str) -> None:
        """Log out the user with this `Cookie` header."""
        await asyncio.to_thread(self._request, "sign-out", headers={"Cookie": cookie})

    def _request(self, path: str, **options: Any) -> httpx.Response:
        response = httpx.post(f"http://127.0.0.1:{self.port}/{path}", **{**LOCAL, "timeout": 60}, **options)
        return response.raise_for_status()


class OtherProcess:
    """A process that uses the database of a server, like `manage.py shell` or a task worker.

    Args:
        server: the server whose database the process uses.
        log: the file for its standard error; None: the standard error of the test run.
    """

    def __init__(self, server: Server, log: Path | None = None) -> None:
        command = [sys.executable, "-m", PROJECT]
        variables = server.environment | WITHOUT_DAPHNE
        input_end, sink = os.pipe()
        source, output_end = os.pipe()
        self._sink, self._source = os.fdopen(sink, "w"), os.fdopen(source)
        with os.fdopen(input_end), os.fdopen(output_end, "w"), contextlib.ExitStack() as files:
            errors = 2 if log is None else files.enter_context(log.open("ab")).fileno()
            self._process = start(command, cwd=ROOT, env=variables, stdin=input_end, stdout=output_end, stderr=errors)
        self._lock = asyncio.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._sink.close()
        self._source.close()

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Make a call (tests/integration/project/calls.py) in the process."""
        line = json.dumps({"call": name, "args": args, "kwargs": kwargs})
        async with self._lock:
            return _result(json.loads(await asyncio.to_thread(self._exchange, line)))

    def _exchange(self, line: str) -> str:
        self._sink.write(line + "\n")
        self._sink.flush()
        return self._source.readline()

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None


class CallFailed(Exception):
    """A call raised an error in the server or in another process."""


def _result(answer: Mapping[str, Any]) -> Any:
    if "error" in answer:
        raise CallFailed(answer["error"])
    return answer["result"]


class ServerPool:
    """Servers that tests share: one for each combination of kind and settings, started on first use.

    Args:
        folder: the folder for the files of all servers.
        defaults: called for each server; returns keys of `RELIABLE_CABLE` that apply unless a test sets them.
        variables: environment variables of the servers. If they name a PostgreSQL server, its database is shared.
    """

    def __init__(self, folder: Path, defaults: Callable[[], Mapping[str, Any]] = dict, **variables: str) -> None:
        self._folder = folder
        self._defaults = defaults
        self._variables = variables
        self._template: Path | None = None
        self._stack = contextlib.ExitStack()
        self._servers: dict[tuple[Kind, str], Server] = {}
        self._failures: dict[tuple[Kind, str], Exception] = {}
        self._others: dict[Server, OtherProcess] = {}
        self._count = 0

    def close(self) -> None:
        """Kill all servers and other processes."""
        self._stack.close()

    def make(self, kind: Kind, **settings: Any) -> Server:
        """Return a new server that is not shared and not started."""
        if self._template is None:
            self._template = make_database(self._folder, **self._variables)
        self._count += 1
        folder = self._folder / f"{kind}-{self._count}"
        folder.mkdir()
        return Server(kind, folder, self._template, {**self._defaults(), **settings}, shared=False, **self._variables)

    def get(self, kind: Kind, **settings: Any) -> Server:
        """Return the running server with these settings."""
        key = (kind, json.dumps(settings, sort_keys=True))
        server = self._servers.get(key)
        if key in self._failures:
            raise self._failures[key]  # do not wait for the same failure again
        if server is None or not server.alive:
            try:
                server = self._servers[key] = self._stack.enter_context(self.make(kind, **settings))
            except RuntimeError as error:
                self._failures[key] = error
                raise
        return server

    def beside(self, server: Server) -> OtherProcess:
        """Return the other process that belongs to a shared server."""
        if server not in self._others:
            self._others[server] = self._stack.enter_context(OtherProcess(server))
        return self._others[server]
