"""`manage.py cable_serve`: uvicorn as it serves many subscribers best."""

from __future__ import annotations

import importlib.util
import resource
from argparse import ArgumentParser
from typing import Any

from django.conf import settings as django_settings
from django.core.management.base import BaseCommand, CommandError

from reliable_cable.conf import get_settings
from reliable_cable.servers.uvicorn import CableWebSocketProtocol

#: Connections that may wait to be accepted: many come at once after a restart.
BACKLOG = 4096


class Command(BaseCommand):
    """Starts uvicorn with the frame-writing protocol, on uvloop, with as many open files as are allowed."""

    help = "Serves ASGI_APPLICATION with uvicorn, writing each broadcast's frame once for all of its subscribers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take an address, and what is passed on to uvicorn."""
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000", help="host:port; 127.0.0.1:8000 by default")
        parser.add_argument(
            "--compress", action="store_true", help="compress messages (permessage-deflate), each once for all clients"
        )
        parser.add_argument("--log-level", default="warning", help="uvicorn's; sessions' ids are logged from info on")
        parser.add_argument("--forwarded-allow-ips", help="proxies whose X-Forwarded headers are believed")

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve until told to stop."""
        try:
            import uvicorn
        except ImportError as error:
            raise CommandError("uvicorn is not installed: pip install 'reliable_cable[uvicorn]'") from error
        from reliable_cable.servers.paced_uvicorn import PacedHTTPProtocol  # needs uvicorn

        host, separator, port = options["address"].rpartition(":")
        if not separator or not port.isdecimal():
            raise CommandError(f"{options['address']!r} is not an address; give host:port, as 127.0.0.1:8000.")
        application = getattr(django_settings, "ASGI_APPLICATION", None)
        if not application:
            raise CommandError("Set ASGI_APPLICATION to the path of the application in your asgi.py.")
        protocol = CableWebSocketProtocol
        if options["compress"]:
            from reliable_cable.servers.deflate import CompressingWebSocketProtocol  # needs websockets

            protocol = CompressingWebSocketProtocol
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        uvicorn.run(
            ":".join(application.rsplit(".", 1)),
            host=host.strip("[]"),
            port=int(port),
            ws=protocol,
            # Longer ones are refused frame by frame (MAX_MESSAGE_SIZE); this bounds what one frame can cost.
            ws_max_size=4 * get_settings().max_message_size,
            http=PacedHTTPProtocol,
            loop="uvloop" if importlib.util.find_spec("uvloop") else "auto",
            lifespan="off",
            backlog=BACKLOG,
            access_log=False,
            log_level=options["log_level"],
            forwarded_allow_ips=options["forwarded_allow_ips"],
        )
