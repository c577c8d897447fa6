"""anycable-go in front of a server of the test project."""

from __future__ import annotations

import hashlib
import hmac
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.anycable import QUIET, find_anycable
from tests.support.process import OwnProcess, RestartableProcess
from tests.support.server import LOCAL, PATIENCE, ROOT, Server, ServerPool, free_port

#: The application secret of the test project. anycable-go derives its keys from it.
SECRET = "a secret that tests can sign with"


def derive(purpose: str) -> str:
    """Return the key that AnyCable derives from the application secret for a purpose."""
    return hmac.new(SECRET.encode(), purpose.encode(), hashlib.sha256).hexdigest()


class AnyCable(OwnProcess):
    """anycable-go, with RPC to a server of the project. Use it as a context manager, which starts and stops it.

    It has the attributes of `Server` with which tests connect clients, and make calls in the server process.

    Args:
        server: the running server behind it. It answers the calls of anycable-go, unless `rpc` answers them.
        folder: the folder for the log.
        broadcast_port: the port on which it takes broadcasts.
        rpc: the process that answers calls by gRPC; None: `server` answers them by HTTP.
        options: further options of anycable-go, such as `jwt_secret="…"`.
    """

    def __init__(
        self, server: Server, folder: Path, broadcast_port: int, rpc: RPCServer | None = None, **options: str
    ) -> None:
        super().__init__(folder / "anycable.log")
        self.server = server
        self.rpc = rpc
        self.options = options
        self.broadcast_port = broadcast_port
        self.port = 0

    def __enter__(self) -> Self:
        for _ in range(5):
            self.port = free_port()
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command(), cwd=ROOT, env={**os.environ, **QUIET}, stdout=log, stderr=subprocess.STDOUT
                )
            if self._is_healthy():
                return self
            self._process.kill()
            self._process.wait(PATIENCE)
        raise RuntimeError(f"anycable-go did not start:\n{self.log}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _command(self) -> list[str]:
        options = {
            "host": "127.0.0.1",
            "port": str(self.port),
            "path": "/cable",
            "secret": SECRET,
            "rpc_host": self.rpc.address if self.rpc is not None else f"http://127.0.0.1:{self.server.port}/_anycable",
            "headers": "cookie,origin",
            "broadcast_adapter": "http",
            "http_broadcast_port": str(self.broadcast_port),
            "broker": "memory",
            "disconnect_mode": "always",
            "log_level": "debug",
            **self.options,
        }
        return [str(find_anycable()), *(f"--{name}={value}" for name, value in options.items())]

    def _is_healthy(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                return httpx.get(f"http://127.0.0.1:{self.port}/health", **LOCAL).is_success
            except httpx.TransportError:
                time.sleep(0.02)
        return False

    @property
    def log(self) -> str:
        """The output of anycable-go and of the processes behind it."""
        behind = [self.server.log, self.rpc.log if self.rpc is not None else ""]
        return "\n".join([super().log, *behind])

    @property
    def url(self) -> str:
        """The WebSocket URL."""
        return f"ws://127.0.0.1:{self.port}/cable"

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Make a call in the server process."""
        return await self.server.call(name, *args, **kwargs)

    async def broadcast(self, stream: str, data: Any) -> None:
        """Broadcast in the server process, whose adapter posts the message to anycable-go."""
        await self.call("broadcast", stream, data)

    async def sign_in(self, *args: Any, **kwargs: Any) -> str:
        """Log in a user, and return the `Cookie` header."""
        return await self.server.sign_in(*args, **kwargs)

    async def sign_out(self, cookie: str) -> None:
        """Log out the user with this `Cookie` header."""
        await self.server.sign_out(cookie)


class RPCServer(RestartableProcess):
    """`manage.py cable_rpc`. Use it as a context manager, which starts it, and kills it if it is running at the end.

    Args:
        server: the server of the test project whose database and settings the process uses.
        folder: the folder for the log.
        port: the port, on which another process may listen, too; 0: a free port.
    """

    def __init__(self, server: Server, folder: Path, port: int = 0) -> None:
        super().__init__(folder / "rpc.log")
        self._environment = server.environment
        self.port = port

    @property
    def address(self) -> str:
        """The address, in the form of the option `--rpc_host` of anycable-go."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process, and wait until it serves. A restarted server keeps its port."""
        self.port = self.port or free_port()
        command = [sys.executable, "-m", "django", "cable_rpc", self.address]
        before = self.log
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while self.address not in self.log.removeprefix(before):
            assert self.alive, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def terminate(self) -> int:
        """Stop the process with SIGTERM, and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(PATIENCE)


def start_anycable(
    stack: ExitStack | AsyncExitStack,
    servers: ServerPool,
    folder: Path,
    rpc: str = "http",
    *,
    options: Mapping[str, str] | None = None,
    **settings: Any,
) -> AnyCable:
    """Start a server of the project, and anycable-go in front of it.

    Args:
        stack: stops the processes when it is closed.
        servers: makes the server.
        folder: the folder for logs.
        rpc: the protocol of the calls of anycable-go, "http" or "grpc".
        options: options of anycable-go.
        settings: keys of `RELIABLE_CABLE`.
    """
    port = free_port()
    behind = {
        "RPC_CONSUMER": "tests.integration.project.asgi.websocket",
        "BROADCAST_ADAPTER": "http",
        "HTTP_BROADCAST_URL": f"http://127.0.0.1:{port}/_broadcast",
        **settings,
    }
    server = stack.enter_context(servers.make("uvicorn", **behind))
    process = stack.enter_context(RPCServer(server, folder)) if rpc == "grpc" else None
    return stack.enter_context(AnyCable(server, folder, port, process, **(options or {})))
