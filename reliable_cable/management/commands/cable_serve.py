"""`manage.py cable_serve`: uvicorn or daphne as they serve many subscribers best."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import resource
from argparse import ArgumentParser
from typing import Any

from django.conf import settings as django_settings
from django.core.management.base import BaseCommand, CommandError
from django.utils.module_loading import import_string

from reliable_cable.conf import get_settings
from reliable_cable.servers.uvicorn import CableWebSocketProtocol

#: Connections that may wait to be accepted: many come at once after a restart.
BACKLOG = 4096

#: Collections of the middle generation until a full one: how many Python lets pass by itself, and how many here. A full
#: one looks at every object, 0.1 ms for each connection, while nobody gets anything; by itself, Python has one whenever
#: objects have become a quarter more: of the time in which thousands of clients come back, that takes half.
FORMER, RARE = 10, 100

LEVELS = ("critical", "error", "warning", "info", "debug")


class Command(BaseCommand):
    """Starts uvicorn with the frame-writing protocol, on uvloop, or daphne, with as many open files as are allowed."""

    help = "Serves ASGI_APPLICATION, writing each broadcast's frame once for all of its subscribers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take an address, which server, and what is passed on to it."""
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000", help="host:port; 127.0.0.1:8000 by default")
        parser.add_argument("--server", choices=("uvicorn", "daphne"), default="uvicorn", help="uvicorn by default")
        parser.add_argument(
            "--compress",
            action="store_true",
            help="compress messages (permessage-deflate), each once for all clients; with uvicorn",
        )
        parser.add_argument(
            "--log-level", choices=LEVELS, default="warning", help="the server's; sessions' ids are logged from info on"
        )
        parser.add_argument(
            "--forwarded-allow-ips",
            default=os.environ.get("FORWARDED_ALLOW_IPS"),
            help="proxies whose X-Forwarded headers are believed; daphne knows only '*', all that can reach it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve until told to stop."""
        host, separator, port = options["address"].rpartition(":")
        if not separator or not port.isdecimal():
            raise CommandError(f"{options['address']!r} is not an address; give host:port, as 127.0.0.1:8000.")
        application = getattr(django_settings, "ASGI_APPLICATION", None)
        if not application:
            raise CommandError("Set ASGI_APPLICATION to the path of the application in your asgi.py.")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        youngest, middle, oldest = gc.get_threshold()
        if oldest == FORMER:  # unless the project has set it
            gc.set_threshold(youngest, middle, RARE)
        serve = _serve_by_daphne if options["server"] == "daphne" else _serve_by_uvicorn
        serve(application, host.strip("[]"), int(port), options)


def _largest_frame() -> int:
    """Return what bounds the cost of one frame; those beyond MAX_MESSAGE_SIZE are refused one by one."""
    return 4 * get_settings().max_message_size


def _serve_by_uvicorn(application: str, host: str, port: int, options: dict[str, Any]) -> None:
    try:
        import uvicorn
    except ImportError as error:
        raise CommandError("Use --server daphne, or install uvicorn: pip install 'reliable_cable[uvicorn]'") from error
    from reliable_cable.servers.paced_uvicorn import PacedHTTPProtocol  # needs uvicorn

    protocol = CableWebSocketProtocol
    if options["compress"]:
        from reliable_cable.servers.deflate import CompressingWebSocketProtocol

        protocol = CompressingWebSocketProtocol
    uvicorn.run(
        ":".join(application.rsplit(".", 1)),
        host=host,
        port=port,
        http=PacedHTTPProtocol,
        ws=protocol,
        ws_max_size=_largest_frame(),
        loop="uvloop" if importlib.util.find_spec("uvloop") else "auto",
        lifespan="off",
        backlog=BACKLOG,
        access_log=False,
        log_level=options["log_level"],
        forwarded_allow_ips=options["forwarded_allow_ips"],
    )


def _serve_by_daphne(application: str, host: str, port: int, options: dict[str, Any]) -> None:
    # It comes before whatever else imports Twisted: it chooses the reactor.
    from daphne.endpoints import build_endpoint_description_strings

    from reliable_cable.servers.paced_daphne import PacedServer

    if options["compress"]:
        raise CommandError("--compress is for uvicorn: daphne has no such protocol of ours.")
    believed = options["forwarded_allow_ips"]
    if believed not in (None, "", "*"):
        raise CommandError(
            f"daphne believes X-Forwarded headers of everybody or of nobody, not of {believed!r}: give '*' where only "
            "proxies can reach it, or use uvicorn."
        )
    logging.basicConfig(level=options["log_level"].upper())
    (endpoint,) = build_endpoint_description_strings(host=host, port=port)

    def bound_frames() -> None:
        # Not by the options of the server, which older versions do not have.
        size = _largest_frame()
        server.ws_factory.setProtocolOptions(maxFramePayloadSize=size, maxMessagePayloadSize=size)

    server = PacedServer(
        import_string(application),
        endpoints=[f"{endpoint}:backlog={BACKLOG}"],
        # By itself it ends WebSockets after a day.
        websocket_timeout=-1,
        proxy_forwarded_address_header="X-Forwarded-For" if believed else None,
        proxy_forwarded_port_header="X-Forwarded-Port" if believed else None,
        proxy_forwarded_proto_header="X-Forwarded-Proto" if believed else None,
        verbosity=0,
        ready_callable=bound_frames,
    )
    server.run()
    if server.abort_start:
        raise CommandError(f"{host}:{port} cannot be listened on.")
