"""The servers under test, and the ways of broadcasting to each."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.anycable import QUIET, VERSION, find_anycable
from tests.support.server import PATIENCE, ROOT, free_port

PROJECT = "tests.benchmarks.project.asgi:application"
BARE = "tests.benchmarks.fanout.bare:application"
DAPHNE = ("--server", "daphne")
#: An identifier that differs for each client, because it contains the position of the client's page.
OF_PAGE = '{"channel":"BenchChannel","stream":"bench%d","after":"%c.0123456789abcdef.0123456789abcdef"}'


@dataclass(frozen=True)
class Way:
    """A way of broadcasting.

    Args:
        name: the name in tables.
        path: the path to which broadcasts are POSTed on the server under test. The server's CPU for this is counted.
            None: another process broadcasts through Redis.
        key: the key that the HTTP endpoint expects.
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
        name: the name in tables.
        kind: "cable_serve", "uvicorn", "daphne" or "anycable"; "url": a server that is already running.
        application: the ASGI application in the command line of the server.
        ways: the ways of broadcasting; none: only the cost of connections is measured.
        options: additional arguments of the command line.
        variables: additional environment variables.
        rate: paced broadcasts per second.
        back_to_back: whether to measure broadcasts without pauses, too.
        small_streams: whether to measure many small streams, too.
        signed_in: whether to measure clients that are logged in, too.
        compress: whether clients offer permessage-deflate.
        identifier: the identifier to subscribe to; None: that of `BenchChannel`.
        url: the WebSocket URL of a running server.
        post: the URL of a running server to which broadcasts are POSTed.
        pid: the process id of a running server.
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
    titles = {
        "send": "bare hub, ASGI send",
        "write": "bare hub, frame to the transport's write",
        "socket": "bare hub, frame to the socket",
    }
    ways = tuple(Way(titles[name], f"/_broadcast?way={name}") for name in names)
    return Subject(f"bare hub, {kind}", kind, BARE, ways)


def cable(name: str, kind: str, application: str = "cable", **options: tuple[str, ...] | bool) -> Subject:
    """Return this project on a server, with all features enabled."""
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
    """Return this project on uvicorn, with clients that offer compression."""
    variables = {"CABLE_BENCH_APPLICATION": "cable"}
    return Subject(name, kind, PROJECT, (OTHER,), options, variables, compress=True)


def with_pages(subject: Subject) -> Subject:
    """Return a variant of a server under test, in which each client has a different identifier."""
    return replace(
        subject, name=f"{subject.name}, positions of pages", ways=(OTHER,), signed_in=False, identifier=OF_PAGE
    )


def behind_auth(kind: str) -> Subject:
    """Return the bare hub behind the same middlewares as this project."""
    variables = {"CABLE_BENCH_APPLICATION": "bare"}
    return Subject(f"bare hub behind AuthMiddlewareStack, {kind}", kind, PROJECT, (), (), variables, signed_in=True)


def stock(kind: str, layer: str) -> Subject:
    """Return a server with stock Channels and a group, which can send only a few broadcasts per second."""
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

#: An identifier for servers that do not know `BenchChannel`.
PUBSUB = '{"channel":"$pubsub","stream_name":"bench%d"}'
#: anycable-go without RPC. Its broadcasts are those of the adapter "http" (BROADCAST_ADAPTER).
ANYCABLE = Subject(
    f"AnyCable {VERSION}",
    "anycable",
    "",
    (POST,),
    ("--norpc", "--noauth", "--public_streams", "--broker=memory", "--broadcast_adapter=http", "--broadcast_key=bench"),
    variables=QUIET,
    identifier=PUBSUB,
)

SUBJECTS = (
    bare("uvicorn", "write", "send"),
    bare("daphne", "send", "write", "socket"),
    behind_auth("uvicorn"),
    behind_auth("daphne"),
    cable("reliable_cable, uvicorn with frames", "cable_serve", small_streams=True),
    with_pages(cable("reliable_cable, uvicorn with frames", "cable_serve")),
    cable("reliable_cable, uvicorn", "uvicorn"),
    compressing("reliable_cable, uvicorn with frames, compressed once", "cable_serve", "--compress"),
    with_pages(compressing("reliable_cable, uvicorn with frames, compressed once", "cable_serve", "--compress")),
    compressing("reliable_cable, uvicorn, compressed for each", "uvicorn"),
    cable("reliable_cable, daphne", "cable_serve", options=DAPHNE, small_streams=True),
    cable("reliable_cable, daphne by ASGI send", "cable_serve", "plain", options=DAPHNE),
    stock("uvicorn", "channels_redis.pubsub.RedisPubSubChannelLayer"),
    stock("daphne", "channels_redis.core.RedisChannelLayer"),
    ANYCABLE,
)


def by_url(text: str) -> Subject:
    """Return the running server that a string of the form `name=ws://…,http://…,key,pid` describes.

    Raises:
        ValueError: the string has another form.
    """
    name, _, rest = text.partition("=")
    url, post, key, pid = rest.split(",")
    return Subject(
        name,
        "url",
        "",
        (Way("POST to it", "", key),),
        identifier=PUBSUB,
        url=url,
        post=post,
        pid=int(pid),
    )


@dataclass(frozen=True)
class Running:
    """A running server.

    Args:
        pid: the id of the process.
        url: the URL of the WebSocket.
        http: the beginning of HTTP URLs.
    """

    pid: int
    url: str
    http: str


@contextlib.contextmanager
def running(subject: Subject, environment: Mapping[str, str], log: Path) -> Iterator[Running]:
    """Run a server during the block.

    Raises:
        RuntimeError: the server did not start.
    """
    if subject.kind == "url":
        yield Running(subject.pid, subject.url, subject.post)
        return
    port = free_port()
    commands = {
        "cable_serve": ["django", "cable_serve", f"127.0.0.1:{port}"],
        # The default backlog of 50 pending connections is too small for many clients that connect at the same time.
        "daphne": ["daphne", "-v", "0", "-e", f"tcp:port={port}:interface=127.0.0.1:backlog=4096"],
        "uvicorn": ["uvicorn", "--lifespan", "off", "--log-level", "warning", "--port", str(port)],
    }
    application = (
        [] if subject.kind == "cable_serve" else [subject.application]
    )  # cable_serve reads the application from the settings
    if subject.kind == "anycable":
        command_line = [str(find_anycable()), "--host=127.0.0.1", f"--port={port}", *subject.options]
    else:
        command_line = [sys.executable, "-m", *commands[subject.kind], *subject.options, *application]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command_line, cwd=ROOT, env={**os.environ, **environment, **subject.variables}, stdout=output, stderr=output
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
