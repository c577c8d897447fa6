"""What is measured: servers, and the ways of broadcasting to each."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.server import PATIENCE, ROOT, free_port

PROJECT = "tests.benchmarks.project.asgi:application"
BARE = "tests.benchmarks.fanout.bare:application"
DAPHNE = ("--server", "daphne")


@dataclass(frozen=True)
class Way:
    """A way of broadcasting.

    Args:
        name: what the table calls it.
        path: of a POST to the server itself, whose CPU it costs; None: another process broadcasts through Redis.
        key: that the endpoint asks for.
    """

    name: str
    path: str | None = None
    key: str = ""


OTHER = Way("another process")
POST = Way("POST to it", "/_broadcast", "bench")


@dataclass(frozen=True)
class Subject:
    """A server under test.

    Args:
        name: what the table calls it.
        kind: "cable_serve", "uvicorn" or "daphne"; "url" for one that runs already.
        application: for the server's command line.
        ways: that are measured; none: only what a connection costs.
        options: more of the command line.
        variables: more of the environment.
        rate: broadcasts a second when paced.
        back_to_back: whether it is measured with as many as it takes, too.
        small_streams: whether it is measured with many small streams, too.
        signed_in: whether it is measured with clients that are logged in, too.
        compress: whether its clients offer permessage-deflate.
        identifier: what to subscribe to; None: the project's channel.
        url: of the WebSocket, of one that runs already.
        post: where its broadcasts are posted.
        pid: of its process.
    """

    name: str
    kind: str
    application: str
    ways: tuple[Way, ...] = ()
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    rate: float = 20
    back_to_back: bool = True
    small_streams: bool = False
    signed_in: bool = False
    compress: bool = False
    identifier: str | None = None
    url: str = ""
    post: str = ""
    pid: int = 0


def bare(kind: str, *names: str) -> Subject:
    """Return the bare hub on a server."""
    words = {
        "send": "bare hub, ASGI send",
        "write": "bare hub, frame to the transport's write",
        "socket": "bare hub, frame to the socket",
    }
    ways = tuple(Way(words[name], f"/_broadcast?way={name}") for name in names)
    return Subject(f"bare hub, {kind}", kind, BARE, ways)


def cable(name: str, kind: str, application: str = "cable", **options: tuple[str, ...] | bool) -> Subject:
    """Return this project on a server, with everything on."""
    return Subject(
        name,
        kind,
        PROJECT,
        (OTHER, POST),
        variables={"CABLE_BENCH_APPLICATION": application},
        signed_in=True,
        **options,  # type: ignore[arg-type]
    )


def compressing(name: str, kind: str, *options: str) -> Subject:
    """Return this project on uvicorn, with clients that take what is compressed."""
    variables = {"CABLE_BENCH_APPLICATION": "cable"}
    return Subject(name, kind, PROJECT, (OTHER,), options, variables, compress=True)


def behind_auth(kind: str) -> Subject:
    """Return a consumer that does nothing, behind the same middlewares as this project's."""
    variables = {"CABLE_BENCH_APPLICATION": "bare"}
    return Subject(f"bare hub behind AuthMiddlewareStack, {kind}", kind, PROJECT, (), (), variables, signed_in=True)


def stock(kind: str, layer: str) -> Subject:
    """Return a group of stock Channels on a server; it is saturated by a few broadcasts a second."""
    module, _, _ = layer.rpartition(".")
    return Subject(
        f"stock Channels, {module}, {kind}",
        kind,
        PROJECT,
        (Way("POST to it", "/stock"),),
        variables={"CABLE_BENCH_APPLICATION": "stock", "CABLE_BENCH_LAYER": layer},
        rate=2,
        back_to_back=False,
    )


FLOOR = Subject("floor", "uvicorn", BARE, (Way("floor", "/_broadcast?way=floor"),))

SUBJECTS = (
    bare("uvicorn", "write", "send"),
    bare("daphne", "send", "write", "socket"),
    behind_auth("uvicorn"),
    behind_auth("daphne"),
    cable("reliable_cable, uvicorn with frames", "cable_serve", small_streams=True),
    cable("reliable_cable, uvicorn", "uvicorn"),
    compressing("reliable_cable, uvicorn with frames, compressed once", "cable_serve", "--compress"),
    compressing("reliable_cable, uvicorn, compressed for each", "uvicorn"),
    cable("reliable_cable, daphne", "cable_serve", options=DAPHNE, small_streams=True),
    cable("reliable_cable, daphne by ASGI send", "cable_serve", "plain", options=DAPHNE),
    stock("uvicorn", "channels_redis.pubsub.RedisPubSubChannelLayer"),
    stock("daphne", "channels_redis.core.RedisChannelLayer"),
)


def by_url(text: str) -> Subject:
    """Return a server that runs already, from `name=ws://…,http://…,key,pid`.

    Raises:
        ValueError: the text is something else.
    """
    name, _, rest = text.partition("=")
    url, post, key, pid = rest.split(",")
    return Subject(
        name,
        "url",
        "",
        (Way("POST to it", "", key),),
        identifier='{"channel":"$pubsub","stream_name":"bench%d"}',
        url=url,
        post=post,
        pid=int(pid),
    )


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Args:
        pid: of its process.
        url: of its WebSocket.
        http: the beginning of its HTTP addresses.
    """

    pid: int
    url: str
    http: str


@contextlib.contextmanager
def running(subject: Subject, environment: Mapping[str, str], log: Path) -> Iterator[Running]:
    """Run a server for as long as the block.

    Raises:
        RuntimeError: it did not start.
    """
    if subject.kind == "url":
        yield Running(subject.pid, subject.url, subject.post)
        return
    port = free_port()
    command = {
        "cable_serve": ["django", "cable_serve", f"127.0.0.1:{port}"],
        # By itself it lets 50 connections wait: of many that come at once, most would try again after seconds.
        "daphne": ["daphne", "-v", "0", "-e", f"tcp:port={port}:interface=127.0.0.1:backlog=4096"],
        "uvicorn": ["uvicorn", "--lifespan", "off", "--log-level", "warning", "--port", str(port)],
    }[subject.kind]
    application = [] if subject.kind == "cable_serve" else [subject.application]  # it is in the settings
    words = [sys.executable, "-m", *command, *subject.options, *application]
    with log.open("ab") as output:
        process = subprocess.Popen(
            words, cwd=ROOT, env={**os.environ, **environment, **subject.variables}, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{subject.name} did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield Running(process.pid, f"ws://127.0.0.1:{port}/cable", f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait(PATIENCE)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
