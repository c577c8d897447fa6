"""`RPCService`, which answers the calls of anycable-go with the consumer of the project."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from reliable_cable.auth import CableAuthMiddlewareStack
from reliable_cable.conf import NAME, get_settings
from reliable_cable.exceptions import ProtocolError
from reliable_cable.protocol.constants import Subprotocol

from .calls import CommandCall, ConnectCall, DisconnectCall, RemoteCall
from .client_logs import ClientLogs
from .requests import Answer, Env, Status

Application = Callable[[Any, Any, Any], Awaitable[Any]]

#: The key in the `extensions` of a scope under which a consumer finds the `RemoteCall`.
EXTENSION: Final = "reliable_cable.anycable"
#: The class that answers the calls, for each method of AnyCable's service.
METHODS: Final[Mapping[str, type[RemoteCall]]] = {
    "connect": ConnectCall,
    "command": CommandCall,
    "disconnect": DisconnectCall,
}
#: The name, among the headers of a call, under which anycable-go passes on the address of the client.
_REMOTE_ADDRESS: Final = "REMOTE_ADDR"
_SECURE: Final = ("https", "wss")


class RPCService:
    """Answers the calls of anycable-go.

    Args:
        application: the ASGI application that serves WebSockets: a consumer with its middlewares.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self._logs = ClientLogs()

    async def call(self, method: str, values: Mapping[str, Any], sid: str) -> dict[str, Any]:
        """Answer a call.

        Args:
            method: a key of `METHODS`.
            values: the fields of the call.
            sid: the session id of the client, or `""` if it is unknown.

        Returns:
            The fields of the answer. If an error was raised, the answer says so, and the error is logged.

        Raises:
            ProtocolError: a field of the call is not valid. No handler has run.
        """
        log = self._logs.get(sid)
        call = METHODS[method](values, sid, log)
        try:
            await self._application(_scope_of(call), _receive, _send)
        except ProtocolError:
            raise
        except Exception:
            log.exception("A %r call of anycable-go failed.", method)
            return Answer(Status.ERROR, "An error was raised. It is in Django's log.").dump()
        if method == "disconnect":
            self._logs.end(sid)
        if call.answer is None:
            # A middleware has not called the consumer. For example, it could not authenticate the client in an outage.
            return Answer(Status.ERROR, "A middleware has refused the call. The reason is in Django's log.").dump()
        return call.answer.dump()


def load_service() -> RPCService:
    """Return the service for the consumer or the ASGI application that the setting `RPC_CONSUMER` names.

    Raises:
        ImproperlyConfigured: the setting is missing, or names something that cannot be used.
    """
    path = get_settings().rpc_consumer
    if path is None:
        raise ImproperlyConfigured(
            f"{NAME}['RPC_CONSUMER'] is missing. It names your subclass of CableConsumer, such as "
            "'project.consumers.AppConsumer', or the ASGI application that serves WebSockets."
        )
    try:
        found = import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(f"{NAME}['RPC_CONSUMER'] cannot be imported: {error}.") from error
    if isinstance(found, type):
        if not hasattr(found, "as_asgi"):
            raise ImproperlyConfigured(f"{NAME}['RPC_CONSUMER'] is {path!r}, which is no subclass of CableConsumer.")
        found = CableAuthMiddlewareStack(found.as_asgi())
    if not callable(found):
        raise ImproperlyConfigured(f"{NAME}['RPC_CONSUMER'] is {path!r}, which is no ASGI application.")
    return RPCService(found)


def _scope_of(call: RemoteCall) -> dict[str, Any]:
    """Return the scope of the client's handshake, as far as anycable-go has passed it on."""
    env: Env = call.env
    try:
        url = urlsplit(env.url)
        host, port = url.hostname or "", url.port
    except ValueError:
        raise ProtocolError("the URL of the client is not valid") from None
    secure = url.scheme in _SECURE
    headers = {name.lower(): value for name, value in env.headers.items() if name != _REMOTE_ADDRESS}
    headers.setdefault("host", url.netloc.rpartition("@")[2])
    return {
        "type": "websocket",
        "scheme": "wss" if secure else "ws",
        "path": url.path or "/",
        "raw_path": (url.path or "/").encode(),
        "root_path": "",
        "query_string": url.query.encode(),
        "headers": [(name.encode("latin1", "replace"), _header(value)) for name, value in headers.items()],
        "client": (env.headers.get(_REMOTE_ADDRESS, ""), 0),
        "server": (host, port or (443 if secure else 80)),
        "subprotocols": [str(Subprotocol.EXTENDED_JSON)],
        "extensions": {EXTENSION: call},
    }


def _header(value: str) -> bytes:
    # anycable-go decodes the bytes of a header as UTF-8.
    return value.encode()


async def _receive() -> dict[str, Any]:
    return {"type": "websocket.connect"}


async def _send(message: Mapping[str, Any]) -> None:
    """Drop the messages by which middlewares close a WebSocket, because a call has no WebSocket."""
