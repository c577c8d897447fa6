"""Makes the channel object for an identifier."""

from reliable_cable.channel import Channel, find_channel, registry
from reliable_cable.exceptions import ProtocolError
from reliable_cable.protocol.commands import parse_identifier

from .connection import Connection


def make_channel(connection: Connection, identifier: str) -> Channel | None:
    """Return a channel object for an identifier; None if there is no such channel."""
    try:
        name, params = parse_identifier(identifier)
    except ProtocolError as error:
        connection.bad_frame(error)
        return None
    if (cls := find_channel(name)) is None:
        # As with an unknown action, the page may be older or newer than this server.
        known = ", ".join(sorted(known for known in registry if not known.startswith("$"))) or "none"
        connection.log.warning("There is no channel %.80r. The installed apps' modules `cable` have: %s.", name, known)
        return None
    return cls(connection.consumer, params, identifier)
