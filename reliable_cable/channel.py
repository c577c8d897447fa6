"""Channels. A handler records changes and messages in a reply, which the connection applies after the handler."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from .actions import ACTION
from .actions import action as action
from .broadcasting import Batch
from .concurrency.threads import sync_only
from .exceptions import ChannelError
from .namespaces import namespace_of, qualify
from .protocol.params import Params
from .protocol.payloads import is_falsy
from .protocol.positions import PagePosition, StreamPosition
from .protocol.presence import member_fault
from .reply import PresenceJoin, PresenceLeave, Reply, StreamStart, StreamStop
from .states import state as state
from .validation import BatchOptions, copy_json, encode_channel_value, qualify_stream, start_position, target_name

#: The channel classes by the name that clients use. A system check reports names with more than one class.
registry: dict[str, list[type[Channel]]] = {}

#: The names of all channel classes, including those that are declared with `abstract=True`.
_names: set[str] = set()

#: The maximum number of bytes of the state of a subscription, as JSON.
MAX_STATE_SIZE = 16 * 1024

#: The optional hooks, which `Channel` itself does not define.
_OPTIONAL_HOOKS = frozenset({"authorize_presence"})


def find_channel(name: str) -> type[Channel] | None:
    """Return the channel class that clients call `name`, or None if there is none."""
    classes = registry.get(name)
    return classes[0] if classes else None


def channel_prefix(stream: str) -> str:
    """Return the prefix of a stream of a channel, such as `ChatChannel:`. Return `""` for other streams."""
    prefixes = (f"{name}:" for name in _names)
    return max((prefix for prefix in prefixes if stream.startswith(prefix)), key=len, default="")


class ChannelPresence:
    """The attribute `presence` of a channel. It records joins and leaves in the subscription's presence stream."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def join(self, id: Any, info: Any = None) -> None:  # noqa: A002 - the protocol's name
        """Join as the member `str(id)`, of up to 255 printable characters. `info` can be any JSON value up to 4 KiB."""
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
        """End the membership. Nothing happens if the subscription has not joined."""
        self._channel.reply.presence.append(PresenceLeave())


class Channel:
    """Base class of channels. An instance is one subscription of one client.

    Handlers (`subscribed`, `unsubscribed`, `resubscribed`, actions and hooks) can be sync or async. The handlers of one
    connection run one after another. The changes and messages that they ask for are recorded in `reply`, and applied
    when they return.

    Args:
        connection: the consumer. It has `user`, and the attributes that its `connect` set.
        params: the parameters of the subscription, without the name of the channel.
        identifier: the subscription's identifier, as the client sent it.
    """

    #: The name that clients use for this channel. The default is the name of the class.
    name: ClassVar[str] = "Channel"
    _actions: ClassVar[Mapping[str, tuple[str, bool]]] = {}

    # To save memory, a channel gets a `__dict__` only when an attribute is set that is not listed here.
    __slots__ = ("__dict__", "__weakref__", "_reply", "_state", "connection", "identifier", "params", "state_size")

    def __init__(self, connection: Any, params: Mapping[str, Any] | None = None, identifier: str = "") -> None:
        self.connection = connection
        self.params: dict[str, Any] = Params(params or {})
        self.identifier = identifier
        self._reply: Reply | None = None
        self._state: dict[str, Any] | None = None
        #: The size of the state, in bytes, when it was dumped last.
        self.state_size = 0

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        actions: dict[str, tuple[str, bool]] = {}
        for attribute in dir(cls):
            method = inspect.getattr_static(cls, attribute, None)
            public = getattr(method, ACTION, None)
            if isinstance(method, state):
                _check_attribute(cls, attribute, "a state")
            elif callable(method) and public is not None:
                _check_attribute(cls, attribute, f"the action {public!r}")
                former, _ = actions.get(public, (attribute, False))
                if inspect.getattr_static(cls, former) is not method:
                    raise ChannelError(f"{cls.__qualname__}: {former} and {attribute} are both the action {public!r}.")
                actions[public] = (attribute, len(inspect.signature(method).parameters) > 1)
        if not isinstance(cls.name, str) or not cls.name:
            raise ChannelError(f"{cls.__qualname__}.name is {cls.name!r}; it must be a non-empty string.")
        cls._actions = actions
        _names.add(cls.name)
        if abstract:
            return
        classes = registry.setdefault(cls.name, [])
        path = (cls.__module__, cls.__qualname__)
        # A module that is imported again replaces its classes.
        classes[:] = [other for other in classes if (other.__module__, other.__qualname__) != path]
        classes.append(cls)

    # -- handlers, for subclasses to override --------------------------------------------------------------------------

    def subscribed(self) -> Any:
        """Handle a new or restored subscription: start streams, join presence, or `reject()` or return False.

        A restore calls this again, with the saved state, before the client is welcomed. Streams that
        the last call started are stopped, unless this call starts them again. The others keep their positions. Streams
        that actions started stay started, and streams that actions stopped stay stopped. A member that is already
        present causes no event.

        If this fails because a database or store cannot be reached, it is called again on a new channel object, for up
        to 8 seconds. After that, the client is disconnected, so that it reconnects and subscribes again.
        """

    def unsubscribed(self) -> Any:
        """Handle the end of the subscription, once: the client unsubscribed, or its connection ended."""

    def resubscribed(self) -> Any:
        """Handle a restored subscription in place of `subscribed`. `reject()` makes the client subscribe again.

        If a channel overrides this, a restored subscription keeps all its streams and its member, and `subscribed` is
        not called. This handler then has to check whether the client may still receive the streams.
        """

    def before_subscribe(self) -> Any:
        """Decide whether `subscribed` or `resubscribed` may be called.

        It refuses by a false value except None, or by `reject()`. The subscription is then rejected.
        """

    def before_action(self, action: str, data: Mapping[str, Any]) -> Any:
        """Decide whether an action may be called. Refuse as in `before_subscribe`.

        `reject()` refuses the action, and also ends the subscription.
        """

    def handle_error(self, error: Exception, handler: str) -> Any:
        """Handle an error that another handler raised. The error was logged, and the handler's reply was dropped.

        The reply of this handler is applied, so it can send a message to the client. After an error of `subscribed`,
        only its messages are sent, because the subscription is rejected. While `subscribed` is retried because a
        database or store cannot be reached, this is called after the last attempt only.

        Args:
            error: the error.
            handler: "subscribed", "resubscribed", "unsubscribed", or the name of the action.
        """

    def snapshot(self, stream: str) -> Any:
        """Return the content of a stream as a `Snapshot`, or None if there is none. May be async.

        If a channel overrides this, a client gets the snapshot of each of its streams with a history when it
        subscribes without a position, and whenever messages after its position are lost. The messages after the
        snapshot's position follow. This runs beside other handlers, so it may neither change state nor use `reply`,
        `transmit()` and the like.

        Args:
            stream: the name of the stream, without its namespace.
        """

    # To let clients join presence by themselves, a channel defines
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
        """The connection's user."""
        return getattr(self.connection, "user", None)

    @property
    def presence(self) -> ChannelPresence:
        """The presence of this subscription."""
        return ChannelPresence(self)

    def stream_from(
        self, stream: str, *, whisper: bool = False, presence: bool = False, after: PagePosition | str | None = None
    ) -> None:
        """Send the broadcasts of a stream to the client.

        Args:
            stream: the stream's name.
            whisper: use this stream for the whispers of the client.
            presence: use this stream for presence. The default is the first stream of the subscription.
            after: also send the messages after this position. It is what `position()` returned for this stream, or the
                text of that, as in `after=self.params.get("after")`. If these messages are not all stored, or the text
                is not a position of this stream, the client is sent `reject_history`. A client that names a position
                of its own is sent the messages after that one. Base clients have no positions, and neither have streams
                without a history.

        Raises:
            InvalidStreamName: the name is not valid.
            ChannelError: `after` is a position of another stream.
        """
        name = qualify_stream(stream, namespace_of(self.connection))
        self.reply.streams.append(StreamStart(name, whisper, presence, start_position(after, name)))

    def stream_for(
        self, target: Any, *, whisper: bool = False, presence: bool = False, after: PagePosition | str | None = None
    ) -> None:
        """Send the broadcasts of a target on this channel to the client. See `broadcasting_for` for targets."""
        self.stream_from(self.broadcasting_for(target), whisper=whisper, presence=presence, after=after)

    def stop_stream_from(self, stream: str) -> None:
        """Stop sending the broadcasts of a stream. Nothing happens if the subscription does not have the stream."""
        self.reply.streams.append(StreamStop(qualify(namespace_of(self.connection), stream)))

    def stop_stream_for(self, target: Any) -> None:
        """Stop sending the broadcasts of a target on this channel."""
        self.stop_stream_from(self.broadcasting_for(target))

    def stop_all_streams(self) -> None:
        """Stop sending the broadcasts of all streams."""
        self.reply.streams.append(StreamStop(None))

    def transmit(self, data: Any) -> None:
        """Send a message to this client only.

        Raises:
            ChannelError: the data cannot be encoded as JSON, or is falsy in JavaScript. Clients drop such messages.
        """
        text, _ = encode_channel_value(data, f"{type(self).__name__}: the message")
        if is_falsy(text):
            raise ChannelError(
                f"{type(self).__name__}.transmit({data!r}): clients drop falsy messages; wrap it in a dict."
            )
        self.reply.transmissions.append(text)

    def reject(self) -> None:
        """Refuse the subscription. In an action or its check, end it: the client is told, and may subscribe again."""
        self.reply.rejected = True

    # -- broadcasting --------------------------------------------------------------------------------------------------

    @classmethod
    def broadcasting_for(cls, target: Any) -> str:
        """Return the name of a target's stream on this channel: `ChatChannel:chat.room:1` for a model instance.

        An instance of a proxy model has the same name as that of the concrete model. With multi-table inheritance, a
        child and its parent have different names.

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
        """Broadcast to a target's stream on this channel. The options are those of `broadcast`."""
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
        """Async twin of `broadcast_to`."""
        options = BatchOptions(transient, immediate, to_others, exclude_socket, using)
        return (await Batch.of_one(cls.broadcasting_for(target), data, idempotency_key, options).asend())[0]

    # -- for the connection --------------------------------------------------------------------------------------------

    @classmethod
    def has_snapshots(cls) -> bool:
        """Return whether the class overrides `snapshot`."""
        return cls.snapshot is not Channel.snapshot

    @classmethod
    def is_registered(cls) -> bool:
        """Return whether clients can subscribe to a channel of this name."""
        return bool(registry.get(cls.name))

    @classmethod
    def find_action(cls, name: str) -> tuple[str, bool] | None:
        """Return the name of an action's method, and whether it takes data. Return None for an unknown action."""
        return cls._actions.get(name)

    @classmethod
    def action_names(cls) -> list[str]:
        """Return the names of all actions, in alphabetical order."""
        return sorted(cls._actions)

    def begin(self) -> Mapping[str, Any]:
        """Begin a new reply. Return the state as JSON values, for `undo`.

        Raises:
            ChannelError: a value is not a JSON value.
        """
        self._reply = None
        return self.dump_state()

    def undo(self, saved: Mapping[str, Any]) -> None:
        """Drop the reply, and restore the state that `begin` returned."""
        self._reply = None
        self._state = dict(saved) or None

    def take_reply(self, saved: Mapping[str, Any]) -> Reply:
        """Remove and return the reply, which says whether the state differs from the one that `begin` returned.

        Raises:
            ChannelError: a value of the state is not a JSON value.
        """
        reply = self.reply
        reply.changed = self.dump_state() != saved
        self._reply = None
        return reply

    def dump_state(self) -> dict[str, Any]:
        """Return the state as JSON values.

        Raises:
            ChannelError: a value is not a JSON value, or the values are nested too deeply or too large.
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
        """Load a state that `dump_state` returned. Values that the class does not declare are dropped."""
        self._state = {
            name: value for name, value in values.items() if isinstance(inspect.getattr_static(self, name, None), state)
        } or None


def _check_attribute(cls: type[Channel], name: str, declared: str) -> None:
    """Raise `ChannelError` if a declaration of a class replaces an attribute or a hook of `Channel`."""
    if hasattr(Channel, name) or name in _OPTIONAL_HOOKS:
        raise ChannelError(
            f"{cls.__qualname__}: {declared} replaces the attribute or hook {name!r} of Channel. Rename it. Clients "
            f"can still call an action {name!r} if it is marked with @action(name={name!r})."
        )
