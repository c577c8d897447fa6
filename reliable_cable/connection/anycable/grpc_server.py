"""`GRPCServer`, which serves the calls of anycable-go over gRPC, and gRPC's health service.

Only the command `cable_rpc` imports this module, because it needs the packages grpcio and protobuf.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc

from reliable_cable.conf import get_settings
from reliable_cable.exceptions import ProtocolError

from .service import RPCService
from .wire import HEALTH, RPC, as_mapping, as_message, message_class

#: For each method of AnyCable's service, its key in `service.METHODS`, and the names of its request and response.
_METHODS: Final = {
    "Connect": ("connect", "ConnectionRequest", "ConnectionResponse"),
    "Command": ("command", "CommandMessage", "CommandResponse"),
    "Disconnect": ("disconnect", "DisconnectRequest", "DisconnectResponse"),
}
#: How long, in seconds, a stopping server waits for running calls, once no more new calls arrive.
GRACE: Final = 10.0
#: A stopping server refuses calls until none has arrived in this number of successive pauses of `QUIET_PAUSE` seconds.
#: One pause is not enough, because a busy process may notice a call only some time after its arrival.
QUIET_PAUSES: Final = 5
QUIET_PAUSE: Final = 0.01
#: The maximum time, in seconds, for which a stopping server refuses calls. anycable-go repeats a refused call for
#: 3 seconds.
QUIET_LIMIT: Final = 1.0
#: The minimum time, in milliseconds, between two pings of a client. anycable-go pings every 10 seconds, even without
#: calls. By default, grpcio accepts a ping every 5 minutes, and closes connections with more pings. anycable-go would
#: then repeat the actions that are running on such a connection.
PING_INTERVAL: Final = 5_000
#: The maximum size of a call, as a multiple of `MAX_MESSAGE_SIZE`. In addition to the client's message, a call contains
#: headers and states.
_CALL_FACTOR: Final = 16


class GRPCServer:
    """A gRPC server on the running event loop.

    Args:
        service: answers the calls.
        concurrency: the maximum number of simultaneous calls. Further calls are refused, so this must be greater than
            `--rpc_concurrency` of anycable-go. Calls of the health service count, too.
        certificate: the paths of the private key and of the certificate chain, in PEM. None means that TLS is not used.
    """

    def __init__(self, service: RPCService, *, concurrency: int, certificate: tuple[Path, Path] | None = None) -> None:
        self._service = service
        self._certificate = certificate
        self._stopping = asyncio.Event()
        #: How many calls were refused because the server is stopping.
        self._refused = 0
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=concurrency,
            options=[
                ("grpc.max_receive_message_length", _CALL_FACTOR * get_settings().max_message_size),
                ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    RPC,
                    {
                        name: _unary(partial(self._answer, method, answer), f"anycable.{call}")
                        for name, (method, call, answer) in _METHODS.items()
                    },
                ),
                grpc.method_handlers_generic_handler(
                    HEALTH,
                    {
                        "Check": _unary(self._check, "grpc.health.v1.HealthCheckRequest"),
                        "Watch": grpc.unary_stream_rpc_method_handler(
                            self._watch,
                            request_deserializer=message_class("grpc.health.v1.HealthCheckRequest").FromString,
                            response_serializer=_serialize,
                        ),
                    },
                ),
            )
        )

    async def start(self, address: str) -> int:
        """Listen on an address, and serve calls. Return the port.

        Args:
            address: `host:port`. The port 0 stands for a free port.

        Raises:
            OSError: the server cannot listen on the address, or a file of the certificate cannot be read.
        """
        try:
            if self._certificate is None:
                port = self._server.add_insecure_port(address)
            else:
                key, chain = (path.read_bytes() for path in self._certificate)
                port = self._server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
        except RuntimeError as error:
            raise OSError(f"the server cannot listen on {address}") from error
        await self._server.start()
        return int(port)

    async def stop(self) -> None:
        """Refuse new calls, and wait until the running ones have ended, for up to `GRACE` seconds.

        anycable-go repeats a call that is refused with the status UNAVAILABLE. But when grpcio stops, it answers calls
        that it has not passed on yet with CANCELLED, and anycable-go drops these calls. So this method refuses calls
        itself until no more arrive, for up to `QUIET_LIMIT` seconds, and stops grpcio only then.
        """
        self._stopping.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_LIMIT):
                await self._wait_until_quiet()
        await self._server.stop(GRACE)

    async def _wait_until_quiet(self) -> None:
        pauses = 0
        while pauses < QUIET_PAUSES:
            refused = self._refused
            await asyncio.sleep(QUIET_PAUSE)
            pauses = pauses + 1 if refused == self._refused else 0

    async def _answer(self, method: str, answer: str, request: Any, context: Any) -> Any:
        if self._stopping.is_set():
            self._refused += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is stopping.")
        sid = next((str(value) for name, value in context.invocation_metadata() or () if name == "sid"), "")
        try:
            return as_message(f"anycable.{answer}", await self._service.call(method, as_mapping(request), sid))
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"The call is not valid: {error}.")

    async def _check(self, request: Any, context: Any) -> Any:
        if request.service not in ("", RPC, HEALTH):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service!r:.80}.")
        return self._health()

    async def _watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield self._health()
        if not self._stopping.is_set():
            await self._stopping.wait()
            yield self._health()

    def _health(self) -> Any:
        status = "NOT_SERVING" if self._stopping.is_set() else "SERVING"
        return as_message("grpc.health.v1.HealthCheckResponse", {"status": status})


def _unary(respond: Callable[[Any, Any], Awaitable[Any]], request: str) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        respond, request_deserializer=message_class(request).FromString, response_serializer=_serialize
    )


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
