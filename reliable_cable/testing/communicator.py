"""`CableCommunicator`, a test client that connects to the ASGI application without a server."""

from collections.abc import Mapping
from typing import Any, Final, Self
from urllib.parse import urlsplit

from channels.routing import get_default_application

from reliable_cable.auth.verification import SCOPE_KEY, TokenAuthentication
from reliable_cable.channel import Channel
from reliable_cable.conf import get_settings
from reliable_cable.consumer import close_hub, get_hub
from reliable_cable.protocol.constants import Subprotocol

from .client_socket import ClientSocket, Frame, is_message
from .isolation import current_isolation
from .subscription import CableSubscription, identifier_of

#: The close code of a broken connection.
CLOSE_ABNORMAL: Final = 1006


class CableCommunicator(ClientSocket):
    """A test client for async tests, with one connection at a time.

    `async with` connects the client, and disconnects it at the end. The application is called in the same way as a
    server calls it.

    Args:
        application: the ASGI application. The default is the one in the setting `ASGI_APPLICATION`.
        path: the path, which may be followed by `?` and a query string.
        user: the user of the connection. By default, the authentication middleware determines the user.
        client: a test client of Django. Its cookies are sent with the handshake, so that its logged-in user connects.
        protocol: the subprotocol that the client offers. The alternative to the default is `"actioncable-v1-json"`.
        session_id: the id of the session to restore.
        headers: additional headers of the handshake.
        scope: additional keys of the ASGI scope. Usually, middlewares add them.

    Raises:
        RuntimeError: the test does not run in `isolated_cable()`.
    """

    def __init__(
        self,
        application: Any = None,
        path: str = "/cable",
        *,
        user: Any = None,
        client: Any = None,
        protocol: str = Subprotocol.EXTENDED_JSON,
        session_id: str = "",
        headers: Mapping[str, str] | None = None,
        scope: Mapping[str, Any] | None = None,
    ) -> None:
        current_isolation()
        super().__init__()
        self._application = application or get_default_application()
        self._path = path
        self._added_scope = {**(scope or {}), **({} if user is None else {"user": user})}
        if user is not None and get_settings().jwt_required:
            # With JWT_REQUIRED, only clients with a token may connect. This entry of the scope replaces the token.
            self._added_scope[SCOPE_KEY] = TokenAuthentication(user)
        self._client = client
        self._protocol = protocol
        self._headers = dict(headers or {})
        #: The id of the session. `connect` restores the session with this id, then stores the id that the server sends.
        self.session_id = session_id
        #: The identifiers of the subscriptions that were restored when the client last connected.
        self.restored: list[str] = []
        #: The subscriptions of this client, by identifier.
        self.subscriptions: dict[str, CableSubscription] = {}

    async def __aenter__(self) -> Self:
        if not await self.connect():
            raise AssertionError(f"The connection was refused: {self.refusal}.")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    # -- the connection -----------------------------------------------------------------------------------------------

    async def connect(self) -> bool:
        """Connect, and return whether the client was welcomed.

        Raises:
            Exception: the application raised this error.
        """
        welcome = await self.open(self._application, self._scope())
        self.restored = [] if welcome is None else welcome.get("restored_ids", [])
        if welcome is not None:
            self.session_id = welcome["sid"]
        return welcome is not None

    async def aclose(self) -> None:
        """Close the connection. If it was the last one of the event loop, close the hub, too."""
        await self.disconnect()
        if not len(get_hub().connections):
            await close_hub()

    async def reconnect(self) -> bool:
        """Break the connection if it is open, and connect again in the same way as a real client.

        The server restores the session. The client then requests the messages after the last ones that it received. If
        a subscription was not restored, the client subscribes again. After this call, `receive` returns the messages
        that the client has missed.

        Returns:
            True if the client was welcomed, no subscription was rejected, and no messages are lost.
        """
        await self.disconnect(CLOSE_ABNORMAL)
        if not await self.connect():
            return False
        complete = True
        for subscription in self.subscriptions.values():
            restored = subscription.identifier in self.restored
            complete = await (subscription.history() if restored else subscription.subscribe()) and complete
        return complete

    def _scope(self) -> dict[str, Any]:
        url = urlsplit(self._path)
        session = f"sid={self.session_id}" if self.session_id else ""
        # The header `origin` is needed, because Channels' `AllowedHostsOriginValidator` refuses clients without it.
        headers = {"host": "testserver", "origin": "http://testserver", **self._headers}
        if self._client is not None:
            headers["cookie"] = "; ".join(f"{name}={each.value}" for name, each in self._client.cookies.items())
        return {
            "type": "websocket",
            "path": url.path,
            "query_string": "&".join(filter(None, [url.query, session])).encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "subprotocols": [str(self._protocol)],
            **self._added_scope,
        }

    # -- subscriptions ------------------------------------------------------------------------------------------------

    async def subscribe(
        self, channel: type[Channel] | str, params: Mapping[str, Any] | None = None, *, since: float | None = None
    ) -> CableSubscription:
        """Subscribe to a channel, and return the subscription. After a rejection, its `confirmed` is False.

        Args:
            channel: the channel class, or its name.
            params: the parameters of the subscription.
            since: a time in seconds since 1970. The messages that were sent after this time are requested.

        Raises:
            AssertionError: the server did not answer within 15 seconds.
            ConnectionError: the server closed the connection.
        """
        subscription = self.add_subscription(channel, params)
        await subscription.subscribe(since=since)
        return subscription

    def add_subscription(self, channel: type[Channel] | str, params: Mapping[str, Any] | None) -> CableSubscription:
        """Return the subscription to a channel with these params. Create the object if needed, but send no command."""
        identifier = identifier_of(channel, params)
        return self.subscriptions.setdefault(identifier, CableSubscription(self, identifier))

    def observe(self, frame: Frame) -> None:
        """Pass a received frame to the subscription that the frame names."""
        subscription = self.subscriptions.get(frame.get("identifier", ""))
        if subscription is not None:
            subscription.observe(frame)

    # -- frames -------------------------------------------------------------------------------------------------------

    async def receive(self) -> Any:
        """Return the data of the next message for any subscription: a broadcast, a transmission or a whisper.

        Raises:
            AssertionError: no message arrived within 15 seconds. The error lists the received frames.
            ConnectionError: the server closed the connection.
        """
        return (await self.take(is_message, "message"))["message"]

    async def received(self) -> list[Any]:
        """Return the data of all messages that the client has received, except those that were returned before.

        This first waits until the server has handled all commands of the client. So an empty list means that the
        commands have caused no messages. Broadcasts through Redis may arrive later: wait for them with `receive`.
        """
        await self.settle()
        return [frame["message"] for frame in self.take_all(is_message)]

    async def receive_frame(self, type: str | None = None) -> Frame:  # noqa: A002 - the protocol's name
        """Return the next frame that is not a ping.

        Args:
            type: the type of the frame; None for any type. Frames of other types remain for later calls.

        Raises:
            AssertionError: no such frame arrived within 15 seconds. The error lists the received frames.
            ConnectionError: the server closed the connection.
        """
        return await self.take(lambda frame: type in (None, frame.get("type")), f"frame of the type {type}")
