"""Channels: what application code subclasses. A handler *records* what it wants; the session applies the record."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar, overload

from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Model

from . import broadcasting
from .concurrency.threads import sync_only
from .exceptions import ChannelError
from .protocol.payloads import is_falsy
from .protocol.positions import StreamPosition
from .reply import PresenceJoin, PresenceLeave, Reply, StreamStart, StreamStop
from .validation import check_stream_name

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

#: Channel classes by the name that clients use.
registry: dict[str, list[type[Channel]]] = {}

_ACTION = "_cable_action"


def duplicate_channels() -> list[tuple[str, list[str]]]:
    """Return the names that more than one channel class claims, with the classes' dotted paths."""
    return [
        (name, [f"{cls.__module__}.{cls.__qualname__}" for cls in classes])
        for name, classes in registry.items()
        if len(classes) > 1
    ]


def find_channel(name: str) -> type[Channel] | None:
    """Return the channel class that clients know by a name."""
    classes = registry.get(name)
    return classes[0] if classes else None


@overload
def action(method: F, /) -> F: ...
@overload
def action(*, name: str) -> Callable[[F], F]: ...
def action(method: F | None = None, /, *, name: str = "") -> F | Callable[[F], F]:
    """Mark a channel's method as one that clients may call, with a dict of data or with nothing.

    Args:
        method: `def` or `async def`.
        name: what clients call it; the method's name if not given.
    """

    def mark(target: F) -> F:
        setattr(target, _ACTION, name or target.__name__)
        return target

    return mark if method is None else mark(method)


class state(Generic[T]):  # noqa: N801 - used like a keyword, as a field is
    """Declare a value of a channel that survives a restore: `count = state(default=0)`. JSON values only."""

    def __init__(self, *, default: T) -> None:
        self.default = default
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, channel: None, owner: type) -> state[T]: ...
    @overload
    def __get__(self, channel: Channel, owner: type) -> T: ...
    def __get__(self, channel: Channel | None, owner: type) -> state[T] | T:
        if channel is None:
            return self
        if channel._state is None:
            channel._state = {}
        if self.name not in channel._state:
            channel._state[self.name] = copy.deepcopy(self.default)
        value: T = channel._state[self.name]
        return value

    def __set__(self, channel: Channel, value: T) -> None:
        if channel._state is None:
            channel._state = {}
        channel._state[self.name] = value


class ChannelPresence:
    """`self.presence` of a channel: records joins and leaves on the subscription's presence stream."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def join(self, id: Any, info: Any = None) -> None:  # noqa: A002 - the wire's name
        """Join as `id` (cast to a string), with any JSON value that describes it."""
        text = str(id).encode(errors="replace").decode()  # a lone surrogate would break every reader's socket
        if id is None or not text:
            raise ChannelError(f"{type(self._channel).__name__}: presence.join() needs an id, not {id!r}.")
        self._channel.reply.presence.append(PresenceJoin(text, json.loads(_encode(info, self._channel))))

    def leave(self) -> None:
        """Leave; nothing happens if nobody joined."""
        self._channel.reply.presence.append(PresenceLeave())


class Channel:
    """One subscription of one client; subclass it.

    Handlers (`subscribed`, `unsubscribed`, `resubscribed`, actions and hooks) may be `def` or `async def`. Those of
    one connection run one after another. What they ask for is recorded in `reply` and applied when they return.

    Args:
        connection: the consumer; has `user` and whatever its `connect` set.
        params: what the client subscribed with, less the channel's name.
        identifier: the subscription's identifier, as the client wrote it.
    """

    #: What clients call this channel: the class's name unless set.
    name: ClassVar[str] = "Channel"
    _actions: ClassVar[Mapping[str, tuple[str, bool]]] = {}

    # What every subscription has takes no dict; subclasses have one for what is their own.
    __slots__ = ("__dict__", "__weakref__", "_reply", "_state", "connection", "identifier", "params")

    def __init__(self, connection: Any, params: Mapping[str, Any] | None = None, identifier: str = "") -> None:
        self.connection = connection
        self.params: dict[str, Any] = dict(params or {})
        self.identifier = identifier
        self._reply: Reply | None = None
        self._state: dict[str, Any] | None = None

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        actions = {}
        for attribute in dir(cls):
            method = inspect.getattr_static(cls, attribute, None)
            public = getattr(method, _ACTION, None)
            if callable(method) and public is not None:
                actions[public] = (attribute, len(inspect.signature(method).parameters) > 1)
        cls._actions = actions
        if abstract:
            return
        classes = registry.setdefault(cls.name, [])
        path = (cls.__module__, cls.__qualname__)
        # A module that is imported anew replaces its classes.
        classes[:] = [other for other in classes if (other.__module__, other.__qualname__) != path]
        classes.append(cls)

    # -- handlers, to be overridden ---------------------------------------------------------------------------------

    def subscribed(self) -> Any:
        """A client subscribes: start streams, join presence, or `reject()`.

        If this fails because a database or store cannot be reached, it is called again on a new channel object, for up
        to 8 seconds. Then the client is disconnected, so that it reconnects and subscribes again.
        """

    def unsubscribed(self) -> Any:
        """The subscription ends: called once for each, by `unsubscribe` or because the connection went."""

    def resubscribed(self) -> Any:
        """The session was restored, with this subscription's streams and state; `reject()` takes it away."""

    def before_subscribe(self) -> Any:
        """Check before `subscribed` and `resubscribed`; return False to reject."""

    def before_action(self, action: str, data: Mapping[str, Any]) -> Any:
        """Check before an action; return False to ignore the call."""

    def handle_error(self, error: Exception, handler: str) -> Any:
        """A handler raised, and its traceback was logged: nothing of what it recorded was applied.

        What is recorded here is applied (a transmission that tells the client, say). If `subscribed` is retried because
        a database or store cannot be reached, this is called after the last attempt only.

        Args:
            error: what it raised.
            handler: "subscribed", "resubscribed", "unsubscribed", or the action's name.
        """

    # A channel on whose streams clients may join presence by themselves defines
    #     def authorize_presence(self, id: str, info: Any) -> bool

    # -- for use in handlers ----------------------------------------------------------------------------------------

    @property
    def reply(self) -> Reply:
        """What the handler that runs, or ran last, has recorded; gone when that was applied."""
        if self._reply is None:
            self._reply = Reply()
        return self._reply

    @property
    def user(self) -> Any:
        """The connection's user."""
        return getattr(self.connection, "user", None)

    @property
    def presence(self) -> ChannelPresence:
        """Joins and leaves on the presence stream."""
        return ChannelPresence(self)

    def stream_from(self, stream: str, *, whisper: bool = False, presence: bool = False) -> None:
        """Send the client what is broadcast to a stream.

        Args:
            stream: its name.
            whisper: the client's whispers go to this stream.
            presence: the stream that presence is kept on; the first one, if none is marked.

        Raises:
            InvalidStreamName: the name cannot be one.
        """
        check_stream_name(stream)
        self.reply.streams.append(StreamStart(stream, whisper, presence))

    def stream_for(self, target: Any, *, whisper: bool = False, presence: bool = False) -> None:
        """Send the client what is broadcast to a model instance (or several, or strings) on this channel."""
        self.stream_from(self.broadcasting_for(target), whisper=whisper, presence=presence)

    def stop_stream_from(self, stream: str) -> None:
        """Leave a stream; nothing happens if the subscription is not on it."""
        self.reply.streams.append(StreamStop(stream))

    def stop_stream_for(self, target: Any) -> None:
        """Leave the stream of a model instance."""
        self.stop_stream_from(self.broadcasting_for(target))

    def stop_all_streams(self) -> None:
        """Leave all streams."""
        self.reply.streams.append(StreamStop(None))

    def transmit(self, data: Any) -> None:
        """Send something to this client alone.

        Raises:
            ChannelError: it is not JSON, or falsy in JavaScript, which clients drop.
        """
        text = _encode(data, self)
        if is_falsy(text):
            raise ChannelError(
                f"{type(self).__name__}.transmit({data!r}): clients drop falsy messages; wrap it in a dict."
            )
        self.reply.transmissions.append(text)

    def reject(self) -> None:
        """Refuse the subscription."""
        self.reply.rejected = True

    # -- broadcasting -------------------------------------------------------------------------------------------------

    @classmethod
    def broadcasting_for(cls, target: Any) -> str:
        """Return the name of a target's stream on this channel: `ChatChannel:chat.room:1` for a model instance.

        Args:
            target: a saved model instance, a string or number, or a list or tuple of such.
        """
        return f"{cls.name}:{_target_name(target)}"

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
        """Broadcast to a target's stream on this channel; the options are those of `broadcast`."""
        return broadcasting.broadcast(
            cls.broadcasting_for(target),
            data,
            transient=transient,
            immediate=immediate,
            to_others=to_others,
            exclude_socket=exclude_socket,
            idempotency_key=idempotency_key,
            using=using,
        )

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
        return await broadcasting.abroadcast(
            cls.broadcasting_for(target),
            data,
            transient=transient,
            immediate=immediate,
            to_others=to_others,
            exclude_socket=exclude_socket,
            idempotency_key=idempotency_key,
            using=using,
        )

    # -- for the session ----------------------------------------------------------------------------------------------

    @classmethod
    def find_action(cls, name: str) -> tuple[str, bool] | None:
        """Return the method that serves an action, and whether it takes data; None if clients may not call that."""
        return cls._actions.get(name)

    @classmethod
    def action_names(cls) -> list[str]:
        """Return what clients may call."""
        return sorted(cls._actions)

    @property
    def has_state(self) -> bool:
        """Whether there is state to be kept."""
        return bool(self._state)

    def begin(self) -> Mapping[str, Any]:
        """Start recording anew; return the state, for `undo`, as JSON values.

        Raises:
            ChannelError: a value is not JSON.
        """
        self._reply = None
        return self.dump_state()

    def undo(self, saved: Mapping[str, Any]) -> None:
        """Drop what was recorded and bring the state back."""
        self._reply = None
        self._state = dict(saved) or None

    def take_reply(self, *, changed: bool = False) -> Reply:
        """Return what was recorded, to be applied, and keep nothing of it.

        Args:
            changed: whether the handler changed the state.
        """
        reply, self._reply = self.reply, None
        reply.changed = changed
        return reply

    def dump_state(self) -> dict[str, Any]:
        """Return the state as JSON values.

        Raises:
            ChannelError: a value is not JSON.
        """
        if not self._state:
            return {}
        try:
            dumped: dict[str, Any] = json.loads(json.dumps(self._state, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ChannelError(f"{type(self).__name__}: state must hold JSON values only: {error}.") from None
        return dumped

    def load_state(self, values: Mapping[str, Any]) -> None:
        """Take back what `dump_state` returned; what is not declared any more is dropped."""
        self._state = {
            name: value for name, value in values.items() if isinstance(inspect.getattr_static(self, name, None), state)
        } or None


def _target_name(target: Any) -> str:
    if isinstance(target, Model):
        if target.pk is None:
            raise ChannelError(f"{target!r} is not saved: it has no primary key, and so no stream.")
        return f"{target._meta.label_lower}:{target.pk}"
    if isinstance(target, list | tuple) and target:
        return ":".join(_target_name(part) for part in target)
    if isinstance(target, str | int) and not isinstance(target, bool) and target != "":
        return str(target)
    raise ChannelError(
        f"{target!r} names no stream; give a saved model instance, a string, a number, or a list of such."
    )


def _encode(value: Any, channel: Channel) -> str:
    try:
        text = json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError) as error:
        raise ChannelError(f"{type(channel).__name__}: {value!r:.200} is not JSON: {error}.") from None
    return text
