"""`manage.py cable_serve` runs uvicorn or daphne with a configuration for many subscribers."""

import gc
import importlib.metadata
import importlib.util
import logging
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from django.apps import apps
from django.conf import settings as django_settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import autoreload
from django.utils.module_loading import import_string

from reliable_cable import server_logs
from reliable_cable.conf import get_settings
from reliable_cable.hub.draining import install_drain
from reliable_cable.stores.engine import get_engine

if TYPE_CHECKING:
    from django.core.handlers.asgi import ASGIHandler

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: The maximum number of connections that wait in the kernel until the server accepts them. It is high because many
#: clients reconnect at once after a restart.
BACKLOG = 4096

#: Python's default for the third argument of `gc.set_threshold`, which is the number of collections of the middle
#: generation before a full garbage collection.
DEFAULT_FULL_COLLECTION_THRESHOLD = 10
#: The threshold that this command sets instead. A full collection blocks the event loop for 0.1 ms per connection. With
#: Python's default, the server spends half of its time on full collections while thousands of clients reconnect.
FULL_COLLECTION_THRESHOLD = 100

#: The exit code with which the reloader's child process tells Django to start it again.
RELOAD_CODE = 3

LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


class Command(BaseCommand):
    """Serves ASGI_APPLICATION with uvicorn or daphne, extended by the protocol classes in `reliable_cable.servers`."""

    help = "Serves ASGI_APPLICATION with uvicorn or daphne, and encodes each broadcast once for all of its subscribers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of the command."""
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000", help="host:port; default: 127.0.0.1:8000")
        parser.add_argument(
            "--server", choices=("uvicorn", "daphne"), default="uvicorn", help="the server to run; default: uvicorn"
        )
        parser.add_argument(
            "--compress",
            action="store_true",
            help="compress each message once for all clients (permessage-deflate); only with uvicorn",
        )
        parser.add_argument(
            "--log-level",
            choices=LOG_LEVELS,
            default="warning",
            help="the server's log level; with info or debug, session ids are logged, which are secrets",
        )
        parser.add_argument(
            "--forwarded-allow-ips",
            default=os.environ.get("FORWARDED_ALLOW_IPS"),
            help="IP addresses of proxies whose X-Forwarded headers are trusted; daphne accepts only '*' (all of them)",
        )
        parser.add_argument(
            "--reload",
            action="store_true",
            help="restart the server when the project's code changes; connections are closed without a drain",
        )

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Run the command. With `--reload`, skip the system checks, because `_serve_again` runs them at each start."""
        return super().execute(*args, **{**options, "skip_checks": options["skip_checks"] or options["reload"]})

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve until a signal stops the server. With `--reload`, restart the server when the code changes."""
        if options["reload"]:
            try:
                autoreload.run_with_reloader(self._serve_again, **options)
            except KeyError:
                # Django's reloader iterates over `sys.modules`. If an import fails in the thread of the server at this
                # moment, a name is removed from the dict, and the reloader fails. With this exit code, Django restarts
                # the process.
                sys.exit(RELOAD_CODE)
        else:
            self._serve(**options)

    def _serve_again(self, **options: Any) -> None:
        """Serve in a thread of the reloader's child process, while the main thread waits for changes to the code.

        An error in the project's code is raised here. The reloader then waits for the next change.
        """
        autoreload.raise_last_exception()
        self.check(display_num_errors=True)
        self._serve(**options)

    def _serve(self, **options: Any) -> None:
        """Raise the limit of open files, tune the garbage collector, and run the server."""
        host, separator, port = options["address"].rpartition(":")
        if not separator or not port.isdecimal():
            raise CommandError(f"{options['address']!r} is not an address; give host:port, for example 127.0.0.1:8000.")
        application = getattr(django_settings, "ASGI_APPLICATION", None)
        if not application:
            raise CommandError("Set ASGI_APPLICATION to the path of the application in your asgi.py.")
        _raise_limit_of_open_files()
        youngest, middle, oldest = gc.get_threshold()
        if oldest == DEFAULT_FULL_COLLECTION_THRESHOLD:  # a threshold that the project has set is kept
            gc.set_threshold(youngest, middle, FULL_COLLECTION_THRESHOLD)
        serve = _serve_by_daphne if options["server"] == "daphne" else _serve_by_uvicorn
        served = _with_static_files(import_string(application))
        serve(served, host.strip("[]"), int(port), options, partial(self._announce, application, options))

    def _announce(self, application: str, options: dict[str, Any]) -> None:
        """Print the address, server and stores. With DEBUG, add unapplied migrations and the URL of static files."""
        server = options["server"]
        version = importlib.metadata.version(server)
        self.stdout.write(f"Serving {application} at http://{options['address']}/ with {server} {version}.")
        engine = get_engine()
        places = {part: getattr(engine, part).place for part in ("streams", "presence", "sessions")}
        for part, place in places.items():
            self.stdout.write(f"{part.capitalize()}: {place}.")
        if django_settings.DEBUG:
            self.check_migrations()
        if _serves_static_files():
            self.stdout.write(f"Static files: {django_settings.STATIC_URL}, because DEBUG is on.")
        self.stdout.flush()


def _serves_static_files() -> bool:
    return django_settings.DEBUG and apps.is_installed("django.contrib.staticfiles")


def _with_static_files(application: Callable[..., Any]) -> Callable[..., Any]:
    """Return an application that also serves static files if DEBUG is on, as `runserver` does."""
    if not _serves_static_files():
        return application
    from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler

    return ASGIStaticFilesHandler(cast("ASGIHandler", application))  # any ASGI application works at runtime


def _raise_limit_of_open_files() -> None:
    if resource is not None:
        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def _largest_frame() -> int:
    """Return the maximum size of a frame, in bytes. If a frame is larger, the server closes the connection.

    The maximum is a multiple of `MAX_MESSAGE_SIZE`. If a frame is larger than that setting, but not larger than the
    maximum, the consumer ignores the frame and keeps the connection open.
    """
    return 4 * get_settings().max_message_size


def _serve_by_uvicorn(
    application: Callable[..., Any], host: str, port: int, options: dict[str, Any], announce: Callable[[], None]
) -> None:
    try:
        from reliable_cable.servers import uvicorn_server
        from reliable_cable.servers.paced_uvicorn import PacedHTTPProtocol
        from reliable_cable.servers.uvicorn import CableWebSocketProtocol
    except ImportError as error:
        raise CommandError(
            f"The Python package {error.name} is not installed: pip install 'reliable_cable[uvicorn]', or use --server "
            "daphne."
        ) from error

    protocol = CableWebSocketProtocol
    if options["compress"]:
        from reliable_cable.servers.deflate import CompressingWebSocketProtocol

        protocol = CompressingWebSocketProtocol
    announce()
    uvicorn_server.run(
        application,
        on_start=install_drain,
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


def _serve_by_daphne(
    application: Callable[..., Any], host: str, port: int, options: dict[str, Any], announce: Callable[[], None]
) -> None:
    # daphne must be imported before anything else imports Twisted, because it chooses the reactor.
    from daphne.endpoints import build_endpoint_description_strings

    from reliable_cable.servers.paced_daphne import PacedServer

    if options["compress"]:
        raise CommandError("--compress works only with uvicorn; remove it, or remove --server daphne.")
    trusted = options["forwarded_allow_ips"]
    if trusted not in (None, "", "*"):
        raise CommandError(
            "daphne trusts the X-Forwarded headers of all clients or of none, so --forwarded-allow-ips cannot be "
            f"{trusted!r}. Give '*' if only proxies can reach the server, or use uvicorn."
        )
    logging.basicConfig(level=options["log_level"].upper())
    server_logs.install()  # called again, because the first call skips Twisted if it is not imported yet
    (endpoint,) = build_endpoint_description_strings(host=host, port=port)

    def limit_frame_size() -> None:
        # These limits are set here, because older versions of daphne have no options for them.
        size = _largest_frame()
        server.ws_factory.setProtocolOptions(maxFramePayloadSize=size, maxMessagePayloadSize=size)

    server = PacedServer(
        application,
        endpoints=[f"{endpoint}:backlog={BACKLOG}"],
        # This disables the timeout of daphne, which closes WebSockets after a day by default.
        websocket_timeout=-1,
        proxy_forwarded_address_header="X-Forwarded-For" if trusted else None,
        proxy_forwarded_port_header="X-Forwarded-Port" if trusted else None,
        proxy_forwarded_proto_header="X-Forwarded-Proto" if trusted else None,
        verbosity=0,
        on_start=install_drain,
        # With the reloader, the server is not in the main thread, so it cannot handle signals.
        signal_handlers=not options["reload"],
        ready_callable=limit_frame_size,
    )
    announce()
    server.run()
    if server.abort_start:
        raise CommandError(f"The server cannot listen on {host}:{port}.")
