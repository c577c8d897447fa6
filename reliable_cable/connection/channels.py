"""Finds the channel that an identifier names, and the action that a command calls."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from reliable_cable.channel import Channel, find_channel, registry
from reliable_cable.client_log import ClientLog
from reliable_cable.exceptions import ProtocolError
from reliable_cable.protocol.commands import Perform, parse_identifier

from .answers import with_answer


class ChannelOwner(Protocol):
    """The part of a connection that this module uses."""

    @property
    def consumer(self) -> Any:
        """The consumer, which channels see as `self.connection`."""

    @property
    def log(self) -> ClientLog:
        """The logger for messages that the client can cause repeatedly."""

    def bad_frame(self, error: ProtocolError) -> None:
        """Log a command that violates the protocol. A WebSocket connection also counts it as a fault of the client."""


def make_channel(connection: ChannelOwner, identifier: str) -> Channel | None:
    """Return a new channel object for an identifier. None if the identifier is invalid or names no channel.

    A warning is logged in both cases.
    """
    try:
        name, params = parse_identifier(identifier)
    except ProtocolError as error:
        connection.bad_frame(error)
        return None
    if (cls := find_channel(name)) is None:
        # An unknown channel is not a bad frame, because the web page may come from another release than this server.
        known = ", ".join(sorted(known for known in registry if not known.startswith("$"))) or "none"
        connection.log.warning("There is no channel %.80r. The modules `cable` of the apps define: %s.", name, known)
        return None
    return cls(connection.consumer, params, identifier)


def find_action(
    connection: ChannelOwner, channel: Channel, command: Perform
) -> tuple[str, Callable[[], Any], Callable[[], Any]] | None:
    """Return the name of an action, a function that runs the action, and a function that runs `before_action`.

    If the client asks for the result, the first function also adds the answer to the reply. If the channel has no such
    action, a warning is logged, and the result is None.
    """
    # As in Rails, data without an action is passed to the action `receive`.
    name = command.data.get("action", "receive")
    method = channel.find_action(name) if isinstance(name, str) else None
    if method is None:
        # An unknown action is not a bad frame, because the web page may come from another release than this server.
        known = ", ".join(channel.action_names()) or "none"
        connection.log.warning("%s has no action %.80r; it has %s.", type(channel).__name__, name, known)
        return None
    attribute, takes_data = method
    data = dict(command.data)
    handler: Callable[[], Any] = partial(getattr(channel, attribute), *((data,) if takes_data else ()))
    if command.call is not None:
        handler = with_answer(handler, channel, command.call)
    return str(name), handler, partial(channel.before_action, str(name), data)
