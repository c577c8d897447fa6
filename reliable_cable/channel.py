"""The base class of channels.

A handler of a channel only records changes and messages in a reply. The connection applies them after the handler has
returned.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from .actions import action as action
from .broadcasting import Batch
from .concurrency.threads import sync_only
from .declarations import declared_actions
from .exceptions import ChannelError
from .namespaces import namespace_of, qualify
from .protocol.params import Params
from .protocol.payloads import is_falsy
from .protocol.positions import PagePosition, StreamPosition
from .protocol.presence import member_fault
from .reply import PresenceJoin, PresenceLeave, Reply, StreamStart, StreamStop
from .states import state as state
from .validation import BatchOptions, copy_json, encode_channel_value, qualify_stream, start_position, target_name

#: The channel classes, by their names for clients. A system check reports each name that has several classes.
registry: dict[str, list[type[Channel]]] = {}

#: The names of all channel classes, including classes with `abstract=True`.
_names: set[str] = set()

#: The maximum size of a subscription's state as JSON, in bytes.
MAX_STATE_SIZE = 16 * 1024


def find_channel(name: str) -> type[Channel] | None:
    """Return the channel class that clients know by this name; None if there is no such class."""
    classes = registry.get(name)
    return classes[0] if classes else None


def channel_prefix(stream: str) -> str:
    """Return the prefix of a stream's name that names a channel, such as `ChatChannel:`; `""` if there is none."""
    prefixes = (f"{name}:" for name in _names)
    return max((prefix for prefix in prefixes if stream.startswith(prefix)), key=len, default="")


class ChannelPresence:
    """Lets handlers make the client a member of the presence stream, or remove it (see `Channel.presence`)."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def join(self, id: Any, info: Any = None) -> None:  # noqa: A002 - the protocol's name
        """Make the client a member of the subscription's presence stream.

        Args:
            id: the id of the member. It is converted to a string, which may have up to 255 printable characters.
            info: a JSON value of at most 4 KiB.

        Raises:
            ChannelError: the id or the info is not allowed.
        """
        # Lone surrogates are replaced, because they cannot be sent to clients.
        text = str(id).encode(errors="replace").decode()
        if id is None or not text:
            raise ChannelError(f"{type(self._channel).__name__}: presence.join() needs an id, and got {id!r}.")
        encoded, _ = encode_channel_value(info, f"{type(self._channel).__name__}: the info")
        fault = member_fault(text, encoded)
        if fault:
            raise ChannelError(f"{type(self._channel).__name__}: presence.join() is refused: {fault}.")
        self._channel.reply.presence.append(PresenceJoin(text, json.loads(encoded)))

    def leave(self) -> None:
        """Remove the client from presence. Nothing happens if it has not joined in this subscription."""
        self._channel.reply.presence.append(PresenceLeave())


class Channel:
    """Base class of channels. An instance serves one subscription of a client.

    Handlers (`subscribed`, `unsubscribed`, `resubscribed`, actions and hooks) can be sync or async. The handlers of one
    connection run one after another. Their changes and messages are recorded in `reply`, and are applied after the
    handler has returned.

    Args:
        connection: the consumer. It has `user`, and the attributes that `connect` has set.
        params: the parameters of the subscription, without the name of the channel.
        identifier: the subscription's identifier, as the client has sent it.
    """

    #: The name by which clients subscribe to this channel. The default is the name of the class.
    name: ClassVar[str] = "Channel"
    _actions: ClassVar[Mapping[str, tuple[str, bool]]] = {}

    # Slots save memory. An instance gets a `__dict__` only when another attribute is set.
    __slots__ = ("__dict__", "__weakref__", "_reply", "_state", "connection", "identifier", "params", "state_size")

    def __init__(self, connection: Any, params: Mapping[str, Any] | None = None, identifier: str = "") -> None:
        self.connection = connection
        # A copy of the dict itself would take more memory, because `parse_identifier` has removed a key from it.
        self.params: dict[str, Any] = Params((params or {}).items())
        self.identifier = identifier
        self._reply: Reply | None = None
        self._state: dict[str, Any] | None = None
        #: The size of the state, in bytes, as `dump_state` last measured it.
        self.state_size = 0

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        cls._actions = declared_actions(cls, Channel)
        if not isinstance(cls.name, str) or not cls.name:
            raise ChannelError(f"{cls.__qualname__}.name is {cls.name!r}; it must be a non-empty string.")
        _names.add(cls.name)
        if abstract:
            return
        classes = registry.setdefault(cls.name, [])
        path = (cls.__module__, cls.__qualname__)
        # If a module is imported again, its new classes replace the former ones.
        classes[:] = [other for other in classes if (other.__module__, other.__qualname__) != path]
        classes.append(cls)

    # -- handlers, for subclasses to override --------------------------------------------------------------------------

    def subscribed(self) -> Any:
        """Handle a new or restored subscription. Start streams and join presence here.

        To reject the subscription, call `reject()` or return False.

        When a session is restored, this is called again, with the saved state, before the client is welcomed. A stream
        that the former call started continues at its position if this call starts it again, and is stopped otherwise.
        A stream that an action has started or stopped remains started or stopped. If the member is still present,
        joining again causes no event.

        If a database or store cannot be reached, `subscribed` is called again on a new channel object, for up to 8
        seconds. After that, the client is disconnected, so that it reconnects and subscribes again.
        """

    def unsubscribed(self) -> Any:
        """Handle the end of the subscription. This is called once, at the latest when the connection has ended."""

    def resubscribed(self) -> Any:
        """Handle a restored subscription, in place of `subscribed`.

        If a channel overrides this, `subscribed` is not called for a restored subscription. The subscription keeps all
        its streams, and its member stays present. So this handler must check whether the client may still receive the
        streams. After `reject()`, the client subscribes again.
        """

    def before_subscribe(self) -> Any:
        """Decide whether `subscribed` or `resubscribed` may be called.

        To reject the subscription, return a false value other than None, or call `reject()`.
        """

    def before_action(self, action: str, data: Mapping[str, Any]) -> Any:
        """Decide whether an action may be called.

        To refuse the action, return a false value other than None. `reject()` refuses the action, and also ends the
        subscription.

        Args:
            action: the name by which the client has called the action.
            data: the data that the client has sent.
        """

    def handle_error(self, error: Exception, handler: str) -> Any:
        """Handle an error that another handler raised. The error was logged, and the reply of that handler was dropped.

        The reply of this method is applied, so `transmit()` can be used. After an error of `subscribed`, only the
        messages of the reply are sent, and the subscription is rejected. But if a database or store cannot be reached,
        `subscribed` is retried, except behind anycable-go. After the last attempt, this method is called, and the
        client is disconnected, so that it subscribes again.

        Args:
            error: the error.
            handler: "subscribed", "resubscribed", "unsubscribed", or the name of the action.
        """

    def snapshot(self, stream: str) -> Any:
        """Return the content of a stream as a `Snapshot`, or None if there is no snapshot. This can be `async def`.

        If a channel overrides this, a client is sent a snapshot of each stream that has a history: when it subscribes
        for the first time, and when messages after its position are lost. The messages after the snapshot follow. A
        snapshot may be made while other handlers run. So this method can neither change the state nor call methods such
        as `transmit()`.

        Args:
            stream: the name of the stream, without its namespace.
        """

    # A channel allows clients to join presence by themselves if it defines this method:
    #     def authorize_presence(self, id: str, info: Any) -> bool

    # -- for use in handlers -------------------------------------------------------------------------------------------

    @property
    def reply(self) -> Reply:
        """The reply of the running handler."""
        if self._reply is None:
            self._reply = Reply()
        return self._reply

    @property
    def user(self) -> Any:
        """The user of the connection; None if the consumer has no user."""
        return getattr(self.connection, "user", None)

    @property
    def presence(self) -> ChannelPresence:
        """The object with which handlers make the client a member of the presence stream, or remove it."""
        return ChannelPresence(self)

    def stream_from(
        self, stream: str, *, whisper: bool = False, presence: bool = False, after: PagePosition | str | None = None
    ) -> None:
        """Send the broadcasts of a stream to the client.

        Args:
            stream: the stream's name.
            whisper: send the whispers of the client to this stream.
            presence: use this stream for presence. The default is the first stream of the subscription.
            after: first send the stored messages after this position, which `position()` has returned for this stream.
                It can be a string, as in `after=self.params.get("after")`. If some of these messages are no longer
                stored, or the string is not a position of this stream, the client receives `reject_history`. If the
                client itself requests messages after a position, that position is used. The argument has no effect for
                clients of the base protocol and for streams without a history.

        Raises:
            InvalidStreamName: the name is not valid.
            ChannelError: `after` is a position of another stream, or is not one that `position()` has returned.
        """
        name = qualify_stream(stream, namespace_of(self.connection))
        self.reply.streams.append(StreamStart(name, whisper, presence, start_position(after, name)))

    def stream_for(
        self, target: Any, *, whisper: bool = False, presence: bool = False, after: PagePosition | str | None = None
    ) -> None:
        """Send the broadcasts of a target's stream to the client. See `broadcasting_for` for targets."""
        self.stream_from(self.broadcasting_for(target), whisper=whisper, presence=presence, after=after)

    def stop_stream_from(self, stream: str) -> None:
        """Stop sending the broadcasts of a stream. Nothing happens if the stream was not started."""
        self.reply.streams.append(StreamStop(qualify(namespace_of(self.connection), stream)))

    def stop_stream_for(self, target: Any) -> None:
        """Stop sending the broadcasts of a target's stream. Nothing happens if the stream was not started."""
        self.stop_stream_from(self.broadcasting_for(target))

    def stop_all_streams(self) -> None:
        """Stop sending the broadcasts of all streams."""
        self.reply.streams.append(StreamStop(None))

    def transmit(self, data: Any) -> None:
        """Send a message to this client only.

        Raises:
            ChannelError: the data cannot be encoded as JSON, or is falsy in JavaScript. Clients drop falsy messages.
        """
        text, _ = encode_channel_value(data, f"{type(self).__name__}: the message")
        if is_falsy(text):
            raise ChannelError(
                f"{type(self).__name__}.transmit({data!r}): clients drop falsy messages; wrap the value in a dict."
            )
        self.reply.transmissions.append(text)

    def reject(self) -> None:
        """Reject the subscription. In an action, this ends the subscription.

        The client is notified, and may subscribe again.
        """
        self.reply.rejected = True

    # -- broadcasting --------------------------------------------------------------------------------------------------

    @classmethod
    def broadcasting_for(cls, target: Any) -> str:
        """Return the name of a target's stream in this channel, such as `ChatChannel:chat.room:1`.

        An instance of a proxy model has the same stream as the instance of its concrete model. With multi-table
        inheritance, a child and its parent have different streams.

        Args:
            target: a saved model instance, a string, a number, or a list or tuple of these.
        """
        return f"{cls.name}:{target_name(target)}"

    @classmethod
    @sync_only("abroadcast_to")
    def broadcast_to(
        cls,
        target: Any,
        data: Any,
        *,
        transient: bool = False,
        immediate: bool = False,
        to_others: bool = False,
        exclude_socket: str | None = None,
        idempotency_key: str | None = None,
        using: str | None = None,
    ) -> StreamPosition | None:
        """Broadcast to a target's stream in this channel. The options are those of `broadcast`."""
        options = BatchOptions(transient, immediate, to_others, exclude_socket, using)
        return Batch.of_one(cls.broadcasting_for(target), data, idempotency_key, options).send()[0]

    @classmethod
    async def abroadcast_to(
        cls,
        target: Any,
        data: Any,
        *,
        transient: bool = False,
        immediate: bool = False,
        to_others: bool = False,
        exclude_socket: str | None = None,
        idempotency_key: str | None = None,
        using: str | None = None,
    ) -> StreamPosition | None:
        """Async version of `broadcast_to`."""
        options = BatchOptions(transient, immediate, to_others, exclude_socket, using)
        return (await Batch.of_one(cls.broadcasting_for(target), data, idempotency_key, options).asend())[0]

    # -- for the connection --------------------------------------------------------------------------------------------

    @classmethod
    def has_snapshots(cls) -> bool:
        """Return whether the class overrides `snapshot`."""
        return cls.snapshot is not Channel.snapshot

    @classmethod
    def is_registered(cls) -> bool:
        """Return whether clients can subscribe to a channel with the name of this class."""
        return bool(registry.get(cls.name))

    @classmethod
    def find_action(cls, name: str) -> tuple[str, bool] | None:
        """Return the name of an action's method, and whether the method takes data; None for an unknown action."""
        return cls._actions.get(name)

    @classmethod
    def action_names(cls) -> list[str]:
        """Return the names of all actions, in alphabetical order."""
        return sorted(cls._actions)

    def begin(self) -> Mapping[str, Any]:
        """Begin a new reply, and return a copy of the state, for `undo` and `take_reply`.

        Raises:
            ChannelError: as for `dump_state`.
        """
        self._reply = None
        return self.dump_state()

    def undo(self, saved: Mapping[str, Any]) -> None:
        """Drop the reply, and restore the state that `begin` returned."""
        self._reply = None
        self._state = dict(saved) or None

    def take_reply(self, saved: Mapping[str, Any]) -> Reply:
        """Remove and return the reply. Set its `changed` if the state differs from the state that `begin` returned.

        Raises:
            ChannelError: as for `dump_state`.
        """
        reply = self.reply
        reply.changed = self.dump_state() != saved
        self._reply = None
        return reply

    def dump_state(self) -> dict[str, Any]:
        """Return a copy of the state, and measure its size.

        Raises:
            ChannelError: a value of the state is not a JSON value, or the state is nested too deeply or too large.
        """
        if not self._state:
            self.state_size = 0
            return {}
        try:
            copy: dict[str, Any]
            copy, self.state_size = copy_json(self._state)
        except (TypeError, ValueError, RecursionError) as error:
            raise ChannelError(f"{type(self).__name__}: the state must consist of JSON values: {error}.") from None
        if self.state_size > MAX_STATE_SIZE:
            name = type(self).__name__
            raise ChannelError(f"{name}: the state has {self.state_size} bytes as JSON; {MAX_STATE_SIZE} are allowed.")
        return copy

    def load_state(self, values: Mapping[str, Any]) -> None:
        """Set the state to a dict from `dump_state`. Drop values that the class does not declare with `state`."""
        self._state = {
            name: value for name, value in values.items() if isinstance(inspect.getattr_static(self, name, None), state)
        } or None
