"""`CableCommunicator`: a client of the cable for tests, without a server."""

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

#: The close code of a connection that broke.
CLOSE_ABNORMAL: Final = 1006


class CableCommunicator(ClientSocket):
    """A client with one connection at a time, in an async test.

    `async with` connects it, and disconnects it at the end. The application is called as a server calls it.

    Args:
        application: the ASGI application. The default is the one that the setting `ASGI_APPLICATION` names.
        path: the path, and the query if there is one.
        user: the user of the connection, in place of the one whom the authentication middleware would find.
        client: a test client of Django. The handshake has its cookies, so the user who is logged in there connects.
        protocol: the subprotocol that the client offers: the extended one, or `"actioncable-v1-json"`.
        session_id: the id of the session to restore.
        headers: more headers of the handshake.
        scope: more keys of the ASGI scope, as middlewares add them.

    Raises:
        RuntimeError: the test is not isolated, see `isolated_cable`.
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
            # The user counts as one whom a token has authenticated.
            self._added_scope[SCOPE_KEY] = TokenAuthentication(user)
        self._client = client
        self._protocol = protocol
        self._headers = dict(headers or {})
        #: The id of the session, or before the welcome, of the one to restore.
        self.session_id = session_id
        #: The identifiers of the subscriptions that the last `connect` has restored.
        self.restored: list[str] = []
        #: The subscriptions, by identifier.
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
            Exception: the error that the application raised.
        """
        welcome = await self.open(self._application, self._scope())
        self.restored = [] if welcome is None else welcome.get("restored_ids", [])
        if welcome is not None:
            self.session_id = welcome["sid"]
        return welcome is not None

    async def aclose(self) -> None:
        """Close the connection, and after the last one of the event loop, what they have shared."""
        await self.disconnect()
        if not len(get_hub().connections):
            await close_hub()

    async def reconnect(self) -> bool:
        """Lose the connection if it is open, and return as a real client does.

        The session is restored, and the messages after the last received ones are requested. A subscription that was
        not restored is made again. After that, the messages that the client has missed can be received.

        Returns:
            Whether the client was welcomed, and no message is lost.
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
        # Channels' `AllowedHostsOriginValidator` refuses clients without an origin.
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
        """Subscribe to a channel. Return the subscription, whose `confirmed` is False if it was rejected.

        Args:
            channel: the channel class, or its name.
            params: the parameters of the subscription.
            since: request the messages since this time, in seconds since 1970.

        Raises:
            AssertionError: the server did not answer within 5 seconds.
            ConnectionError: the server closed the connection.
        """
        subscription = self.add_subscription(channel, params)
        await subscription.subscribe(since=since)
        return subscription

    def add_subscription(self, channel: type[Channel] | str, params: Mapping[str, Any] | None) -> CableSubscription:
        """Return a new subscription to a channel with these params, without sending a command."""
        identifier = identifier_of(channel, params)
        return self.subscriptions.setdefault(identifier, CableSubscription(self, identifier))

    def observe(self, frame: Frame) -> None:
        """Remember the positions of messages."""
        subscription = self.subscriptions.get(frame.get("identifier", ""))
        if subscription is not None:
            subscription.observe(frame)

    # -- frames -------------------------------------------------------------------------------------------------------

    async def receive(self) -> Any:
        """Return the data of the next message for any subscription: a broadcast, a transmission or a whisper.

        Raises:
            AssertionError: there was none within 5 seconds. The error shows what was received instead.
            ConnectionError: the server closed the connection.
        """
        return (await self.take(is_message, "message"))["message"]

    async def received(self) -> list[Any]:
        """Return the data of all messages that the client was sent so far, except those that were returned before.

        The server handles all earlier commands first. So if the list is empty, they have caused no message. Broadcasts
        through Redis may arrive later: use `receive`.
        """
        await self.settle()
        return [frame["message"] for frame in self.take_all(is_message)]

    async def receive_frame(self, type: str | None = None) -> Frame:  # noqa: A002 - the protocol's name
        """Return the next frame that is not a ping.

        Args:
            type: return the next frame of this type. The frames before it can be received later.

        Raises:
            AssertionError, ConnectionError: as for `receive`.
        """
        return await self.take(lambda frame: type in (None, frame.get("type")), f"frame of the type {type}")
