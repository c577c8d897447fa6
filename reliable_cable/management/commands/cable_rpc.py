"""`manage.py cable_rpc` answers the calls of anycable-go by gRPC."""

import asyncio
import signal
from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from reliable_cable.connection.anycable.service import RPCService, load_service

if TYPE_CHECKING:
    from reliable_cable.connection.anycable.grpc_server import GRPCServer

#: The default of `--concurrency`. anycable-go makes up to 28 calls at the same time by default.
CONCURRENCY = 30


class Command(BaseCommand):
    """Serves AnyCable's service `anycable.RPC` with the consumer that the setting `RPC_CONSUMER` names."""

    help = "Answers the calls of anycable-go by gRPC, with the consumer that RELIABLE_CABLE['RPC_CONSUMER'] names."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of the command."""
        parser.add_argument(
            "address",
            nargs="?",
            default="127.0.0.1:50051",
            help="host:port; default: 127.0.0.1:50051. There are no keys: only anycable-go may reach this address",
        )
        parser.add_argument(
            "--concurrency",
            type=int,
            default=CONCURRENCY,
            help=f"calls at the same time; more than --rpc_concurrency of anycable-go; default: {CONCURRENCY}",
        )
        parser.add_argument("--tls-key", type=Path, help="a file with the private key (PEM), to serve with TLS")
        parser.add_argument("--tls-cert", type=Path, help="a file with the certificate chain (PEM)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve until SIGTERM or SIGINT. Then wait until the running calls have ended (see `GRPCServer.stop`)."""
        host, separator, port = options["address"].rpartition(":")
        if not separator or not host or not port.isdecimal():
            raise CommandError(f"{options['address']!r} is not an address; give host:port, as in 127.0.0.1:50051.")
        if options["concurrency"] < 1:
            raise CommandError(f"--concurrency is {options['concurrency']}; it must be at least 1.")
        if (options["tls_key"] is None) != (options["tls_cert"] is None):
            raise CommandError("--tls-key and --tls-cert must be given together.")
        certificate = (options["tls_key"], options["tls_cert"]) if options["tls_key"] is not None else None
        try:
            from reliable_cable.connection.anycable.grpc_server import GRPCServer
        except ImportError as error:
            raise CommandError(
                f"The Python package {error.name} is not installed: pip install 'reliable_cable[grpc]'. Or let "
                "anycable-go use HTTP (see the page AnyCable)."
            ) from error
        try:
            service = load_service()
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        make = partial(GRPCServer, concurrency=options["concurrency"], certificate=certificate)
        try:
            asyncio.run(self._serve(make, service, options["address"]))
        except OSError as error:
            raise CommandError(f"{error}.") from error

    async def _serve(self, make: "partial[GRPCServer]", service: RPCService, address: str) -> None:
        server = make(service)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        port = await server.start(address)
        self.stdout.write(f"Answering the calls of anycable-go at {address.rpartition(':')[0]}:{port}.")
        self.stdout.flush()
        await stop.wait()
        await server.stop()
