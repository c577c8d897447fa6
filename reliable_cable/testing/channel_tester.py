"""`ChannelTester`: one subscription to a channel, for tests of the channel."""

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

REJECTED: Final = "reject() was called, a handler returned False, or a limit was exceeded, which the log says"


class ChannelTester:
    """One client that subscribes to a channel and calls its actions.

    The handlers run as for a real client, and errors that they raise reach the test. In async tests, use `async with`
    and the methods whose names begin with `a`.

    Args:
        channel: the channel class.
        user: the user of the connection. None: an anonymous user.
        params: the parameters of the subscription.
        consumer: the class of the consumer. Its `connect` and `around_command` run, too.
        scope: more keys of the ASGI scope, as middlewares add them, such as `{"session": …}`.

    Raises:
        ValueError: clients reach another channel under the name of this one.
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
                f"Clients do not reach {channel.__qualname__} by the name {channel.name!r}: another channel has that "
                "name, or it was declared with abstract=True."
            )
        self._channel_class = channel
        client_user = _anonymous() if user is None else user
        self._client = CableCommunicator(consumer.as_asgi(), user=client_user, scope=scope)
        self._subscription = self._client.add_subscription(channel, params)
        #: The data that the channel has transmitted to the client, in order. Transient broadcasts look the same to a
        #: client, and are here, too.
        self.transmissions: list[Any] = []
        #: Why the subscription was rejected, for a reader of the test's output; `""` if it was not.
        self.rejection = ""
        self._isolation = current_isolation()
        self._closed_at_end = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    # -- what the client does -----------------------------------------------------------------------------------------

    @sync_only("asubscribe")
    def subscribe(self) -> bool:
        """Connect if there is no connection yet, subscribe, and return whether the subscription was confirmed.

        If it was rejected, `rejection` says why.

        Raises:
            Exception: an error of a handler, unless it refuses the client, as `PermissionDenied` does.
            RuntimeError: the client is subscribed already.
        """
        return self._run(self.asubscribe())

    async def asubscribe(self) -> bool:
        """Async twin of `subscribe`."""
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
        """Call an action, and return its result, as JSON values.

        Args:
            action: the name that clients use for the action.
            data: the data, as JSON values.

        Raises:
            Exception: the error that the action raised.
            CallFailed: the action was refused by `before_action`, there is no such action, or no subscription.
        """
        return self._run(self.aperform(action, data))

    async def aperform(self, action: str, data: Mapping[str, Any] | None = None) -> Any:
        """Async twin of `perform`."""
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
        """End the subscription.

        Raises:
            Exception: the error that `unsubscribed` raised.
        """
        self._run(self.aunsubscribe())

    async def aunsubscribe(self) -> None:
        """Async twin of `unsubscribe`."""
        await self._subscription.unsubscribe()
        error = self._take_results()
        if error is not None:
            raise error

    @sync_only("aclose")
    def close(self) -> None:
        """Disconnect. Sync tests do this automatically when they end.

        After this, `subscribe` connects as a new client.
        """
        if self._client.connection is not None:
            self._run(self.aclose())

    async def aclose(self) -> None:
        """Async twin of `close`."""
        await self._client.aclose()
        # `subscribe` then begins a new session, and does not restore this one.
        self._client.session_id = ""
        self._subscription.positions.clear()

    # -- what the channel has done ------------------------------------------------------------------------------------

    @property
    def rejected(self) -> bool:
        """Whether the subscription was rejected. `rejection` says why."""
        return bool(self.rejection)

    @property
    def channel(self) -> Channel:
        """The channel object.

        Raises:
            AssertionError: the client is not subscribed.
        """
        if self._server_side is None:
            reason = f": {self.rejection}" if self.rejection else ""
            raise AssertionError(f"The client is not subscribed to {self._channel_class.name}{reason}.")
        return self._server_side.channel

    @property
    def streams(self) -> list[str]:
        """The names of the streams that the subscription receives, without their namespace, in order of their start."""
        return [] if self._server_side is None else [split_namespace(name)[1] for name in self._server_side.streams]

    @property
    def state(self) -> dict[str, Any]:
        """The values of the channel's `state` attributes that were used, by name."""
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
        """Take over the transmissions. Return the first error of a handler since the last call."""
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
    # This is imported late, because that module has models, which a project need not have installed.
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()
