"""`ChannelTester`, which subscribes to a channel and calls its actions in tests."""

from collections.abc import Coroutine, Mapping
from typing import Any, Final, Self, TypeVar

from reliable_cable.channel import Channel, find_channel
from reliable_cable.concurrency.threads import sync_only
from reliable_cable.connection.handlers import REFUSALS
from reliable_cable.connection.subscription import Subscription
from reliable_cable.consumer import CableConsumer
from reliable_cable.namespaces import split_namespace
from reliable_cable.protocol.constants import REVOKED

from .client_socket import is_message
from .communicator import CableCommunicator
from .isolation import current_isolation
from .subscription import CallFailed

T = TypeVar("T")

REJECTED: Final = "reject() was called, a handler returned False, or a limit was exceeded (see the log)"


class ChannelTester:
    """A test client with one subscription to a channel.

    The handlers of the channel run as for a real client, but their errors are raised in the test. In async tests, use
    `async with` and the methods whose names begin with `a`.

    Args:
        channel: the channel class.
        user: the user of the connection. The default is an anonymous user.
        params: the parameters of the subscription.
        consumer: the consumer class of the project. Its `connect` and `around_command` are called, too.
        scope: additional keys of the ASGI scope, such as `{"session": …}`. Usually, middlewares add them.

    Raises:
        ValueError: clients cannot subscribe to this class, because another class has the same name, or because it was
            declared with `abstract=True`.
    """

    def __init__(
        self,
        channel: type[Channel],
        *,
        user: Any = None,
        params: Mapping[str, Any] | None = None,
        consumer: type[CableConsumer] = CableConsumer,
        scope: Mapping[str, Any] | None = None,
    ) -> None:
        if find_channel(channel.name) is not channel:
            raise ValueError(
                f"Clients cannot subscribe to {channel.__qualname__} by the name {channel.name!r}: another channel has "
                "this name, or the class was declared with abstract=True."
            )
        self._channel_class = channel
        client_user = _anonymous() if user is None else user
        self._client = CableCommunicator(consumer.as_asgi(), user=client_user, scope=scope)
        self._subscription = self._client.add_subscription(channel, params)
        #: The data that the channel has transmitted to the client, in order. The list also contains transient
        #: broadcasts, because a client cannot distinguish them from transmissions.
        self.transmissions: list[Any] = []
        #: The reason for which the subscription was rejected, in English; `""` if it was not rejected.
        self.rejection = ""
        self._isolation = current_isolation()
        self._closed_at_end = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    # -- actions of the client ----------------------------------------------------------------------------------------

    @sync_only("asubscribe")
    def subscribe(self) -> bool:
        """Subscribe, and return whether the subscription was confirmed. If the client is not connected, connect first.

        After a rejection, `rejection` contains the reason.

        Raises:
            Exception: a handler raised this error. Errors that reject a client, such as `PermissionDenied`, are not
                raised here.
            RuntimeError: the client is subscribed already.
        """
        return self._run(self.asubscribe())

    async def asubscribe(self) -> bool:
        """Async version of `subscribe`."""
        if self._client.connection is None and not await self._client.connect():
            self.rejection = f"the connection was refused: {self._client.refusal}"
            return False
        if self._server_side is not None:
            raise RuntimeError(f"The client is already subscribed to {self._channel_class.name}.")
        self.rejection = ""
        try:
            await self._subscription.subscribe()
        finally:
            error = self._take_results()
        if not self._subscription.confirmed:
            self.rejection = repr(error) if error else REJECTED
        if error is not None and not isinstance(error, REFUSALS):
            raise error
        return self._subscription.confirmed

    @sync_only("aperform")
    def perform(self, action: str, data: Mapping[str, Any] | None = None) -> Any:
        """Call an action, and return the result that a client would receive.

        Args:
            action: the name by which clients call the action.
            data: the arguments of the action, as JSON values.

        Raises:
            Exception: the action raised this error.
            CallFailed: `before_action` refused the action, the channel has no such action, or the client is not
                subscribed.
        """
        return self._run(self.aperform(action, data))

    async def aperform(self, action: str, data: Mapping[str, Any] | None = None) -> Any:
        """Async version of `perform`."""
        try:
            return await self._subscription.call(action, data)
        except CallFailed as failure:
            if failure.__cause__ is not None:
                raise failure.__cause__ from None
            raise
        finally:
            self._take_results()

    @sync_only("aunsubscribe")
    def unsubscribe(self) -> None:
        """Unsubscribe from the channel.

        Raises:
            Exception: `unsubscribed` raised this error.
        """
        self._run(self.aunsubscribe())

    async def aunsubscribe(self) -> None:
        """Async version of `unsubscribe`."""
        await self._subscription.unsubscribe()
        error = self._take_results()
        if error is not None:
            raise error

    @sync_only("aclose")
    def close(self) -> None:
        """Disconnect. At the end of a sync test, this is called automatically.

        If `subscribe` is called later, it connects as a new client.
        """
        if self._client.connection is not None:
            self._run(self.aclose())

    async def aclose(self) -> None:
        """Async version of `close`."""
        await self._client.aclose()
        # Without the id, the next `subscribe` begins a new session. With the id, it would restore the former session.
        self._client.session_id = ""
        self._subscription.positions.clear()

    # -- results of the channel ---------------------------------------------------------------------------------------

    @property
    def rejected(self) -> bool:
        """Whether the subscription was rejected. `rejection` contains the reason."""
        return bool(self.rejection)

    @property
    def channel(self) -> Channel:
        """The channel object of the subscription.

        Raises:
            AssertionError: the client is not subscribed.
        """
        if self._server_side is None:
            reason = f": {self.rejection}" if self.rejection else ""
            raise AssertionError(f"The client is not subscribed to {self._channel_class.name}{reason}.")
        return self._server_side.channel

    @property
    def streams(self) -> list[str]:
        """The names of the subscription's streams, without namespaces, in the order in which they were started."""
        return [] if self._server_side is None else [split_namespace(name)[1] for name in self._server_side.streams]

    @property
    def state(self) -> dict[str, Any]:
        """The values of the channel's `state` attributes, by name. Attributes that were never used are left out."""
        return self.channel.dump_state()

    @property
    def presence(self) -> tuple[str, Any] | None:
        """The id and the info with which the subscription has joined presence; None if it has not joined."""
        return None if self._server_side is None else self._server_side.member

    @property
    def _server_side(self) -> Subscription | None:
        connection = self._client.connection
        if connection is None or connection.closed:
            return None
        known = connection.subscriptions.get(self._subscription.identifier)
        return known if isinstance(known, Subscription) else None

    def _take_results(self) -> BaseException | None:
        """Move the received transmissions to `transmissions`, and return the first new error of a handler, if any."""
        sent = self._client.take_all(lambda frame: is_message(frame) and "epoch" not in frame)
        for frame in sent:
            if isinstance(frame["message"], dict) and frame["message"].get("type") == REVOKED:
                self.rejection = f"it was revoked, or an action called reject(): {frame['message'].get('reason')}"
            else:
                self.transmissions.append(frame["message"])
        errors = self._client.errors.copy()
        self._client.errors.clear()
        return errors[0] if errors else None

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if not self._closed_at_end:
            self._isolation.cleanups.callback(self.close)
            self._closed_at_end = True
        return self._isolation.loop_thread.run(coroutine)


def _anonymous() -> Any:
    # This is not imported at the top, because it loads the models of `django.contrib.auth`, which may not be installed.
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()
