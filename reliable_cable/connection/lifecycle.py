"""Opens and ends connections.

See Architecture: The life of a connection.
"""

import asyncio
from typing import Final

from reliable_cable.hub.draining import refuses_connections
from reliable_cable.protocol import messages
from reliable_cable.protocol.constants import DisconnectReason

from .commands import Commands
from .connection import ConnectionState
from .restore import restore

#: How long, in seconds, a client may take to request the history of a restored subscription.
HISTORY_TIMEOUT: Final = 10.0


async def open_connection(commands: Commands, sid: str | None) -> None:
    """Restore the session that a client names, if that is possible, and welcome the client.

    Args:
        commands: the commands of a new connection, whose handshake the server has accepted.
        sid: the id of the session that the client names, or None if it names none.
    """
    connection, hub = commands.connection, commands.connection.hub
    hub.control.acquire()
    if not connection.extended:
        hub.connections.report_base_client()
    connection.transport.attach(connection.outbox.pause, connection.outbox.resume)
    restored = await restore(commands, sid) if sid and connection.resumable else None
    # There is no `await` between the end of the restore and the welcome. So a revocation or takeover arrives either
    # before the checks for revocations below, or after the connection was added.
    hub.connections.add(connection)
    if connection.ending or hub.control.close_if_revoked(connection):
        return
    if restored is not None:
        restored.identifiers = [each for each in restored.identifiers if not commands.end_if_revoked(each)]
    if restored is not None and restored.elsewhere:
        hub.control.announce_takeover(restored.sid, connection)
    if restored is None and connection.resumable:
        hub.sessions.add(connection)
        connection.changed()
    connection.outbox.push(messages.welcome(connection.sid, None if restored is None else restored.identifiers))
    if restored is not None:
        # A subscription may be revoked while the transmissions of other subscriptions are being sent.
        for identifier in restored.identifiers:
            if identifier in commands.subscriptions:
                await connection.outbox.transmit(identifier, restored.transmissions[identifier])
    loop = asyncio.get_running_loop()
    for subscription in commands.subscriptions.values():
        subscription.deadline = loop.call_later(HISTORY_TIMEOUT, connection.close, DisconnectReason.SERVER_RESTART)
    if not connection.ending:
        connection.state = ConnectionState.OPEN
    hub.heartbeat.add(connection)
    hub.logins.add(connection)
    hub.token_expiry.add(connection)
    if refuses_connections(hub):
        # The server may have begun to stop while the session was being restored. It did not find this connection then.
        connection.close(DisconnectReason.SERVER_RESTART)


async def end_connection(commands: Commands, *, page_closed: bool = False) -> None:
    """End a connection whose socket was closed: save its session for a restore, and release everything else.

    Args:
        commands: the commands of the connection.
        page_closed: whether the client has closed its web page. If so, its members leave after `PRESENCE_GRACE`.
    """
    connection, hub = commands.connection, commands.connection.hub
    if connection.closed:
        return
    connection.state = ConnectionState.CLOSED
    connection.closed_at = hub.engine.session_clock.moment()
    connection.outbox.abandon()
    hub.heartbeat.remove(connection)
    hub.logins.remove(connection)
    hub.token_expiry.remove(connection)
    # The subscriptions end before the commands are awaited, because a running handler may take a long time.
    _release_subscriptions(commands)
    await commands.finished()
    _release_subscriptions(commands)
    if page_closed or connection.refused:
        for subscription in commands.subscriptions.values():
            await subscription.leave_soon()
    if connection.resumable:
        await hub.sessions.drop(connection)
    hub.connections.remove(connection)
    hub.control.release(connection)
    for subscription in commands.subscriptions.values():
        await commands.call(subscription.channel, "unsubscribed", subscription.channel.unsubscribed)
    connection.end_log()
    _break_cycles(commands)


def _release_subscriptions(commands: Commands) -> None:
    for subscription in commands.subscriptions.values():
        subscription.release()


def _break_cycles(commands: Commands) -> None:
    """Break reference cycles, so that the connection is freed without a garbage collection."""
    for subscription in commands.subscriptions.values():
        subscription.break_cycles()
    commands.subscriptions.clear()
    commands.connection.outbox.break_cycles()
    del commands.connection.commands
