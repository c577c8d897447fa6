"""A process that has imported the libraries, and starts programs as forks of itself.

Importing the libraries takes 1 s of CPU time. A fork has them already, so it starts in a tenth of that time.
`tests.support.forks` starts this process, and sends it a message for each program.

A fork runs its program as `python -m` does. Settings, models and Twisted's reactor are imported only in the fork. The
hash seed is the same in all forks.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

#: The modules to import before the first fork: modules that servers import, and that need no settings.
LIBRARIES = (
    "autobahn.twisted.websocket",
    "channels.auth",
    "channels.generic.websocket",
    "channels.routing",
    "channels_redis.core",
    "django.contrib.auth.hashers",
    "django.contrib.sessions.backends.db",
    "django.core.handlers.asgi",
    "django.core.management.commands.migrate",
    "django.db.backends.sqlite3.base",
    "redis.asyncio",
    "reliable_cable.consumer",
    "reliable_cable.http",
    "reliable_cable.servers.daphne",
    "reliable_cable.servers.uvicorn",
    "twisted.internet.asyncioreactor",
    "twisted.web.http",
    "uvicorn.main",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvloop",
)
#: The size, in bytes, of the largest message.
MESSAGE = 2**17


def serve(control: socket.socket) -> str:
    """Fork for each message, and report the pid and exit code of each fork. In a fork, return the module to run.

    Args:
        control: a socket that receives the messages. When its other end is closed, this process ends.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    selector.unregister(key.fd)
                    pid, report = key.data
                    with contextlib.suppress(BrokenPipeError):  # the other process may have closed its end
                        os.write(report, number(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
                    os.close(report)
                    os.close(key.fd)
                    continue
                message, files, _, _ = socket.recv_fds(control, MESSAGE, 4)
                if not message:
                    os._exit(0)
                program = json.loads(message)
                pid = os.fork()
                if not pid:
                    selector.close()
                    control.close()
                    become(program, files)
                    return str(program["module"])
                *standard, report = files
                for file in standard:
                    os.close(file)
                os.write(report, number(pid))
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, report))


def number(value: int) -> bytes:
    """Encode a number for a report."""
    return value.to_bytes(4, sys.byteorder, signed=True)


def become(program: Mapping[str, Any], files: list[int]) -> None:
    """Turn this process into the process of a program.

    Args:
        program: the message.
        files: the files that become standard input, standard output and standard error. All others are closed.
    """
    for target, file in enumerate(files[:3]):
        os.dup2(file, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    if program["new_session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(program["environment"])
    sys.argv = [program["module"], *program["arguments"]]


def main() -> None:
    """Import the libraries, and run programs."""
    # Ctrl-C is ignored: this process ends when the process that started it closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in LIBRARIES:
        import_module(name)
    gc.collect()
    gc.freeze()
    runpy.run_module(serve(socket.socket(fileno=int(sys.argv[1]))), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
